# Imports LibTorch as slim::torch: torch_cpu and c10 alone. Torch's own package file pulls in all of CUDA, which the core must not
# load. Where: -DSLIM_TORCH=DIR, the environment's SLIM_TORCH (a folder with include/ and lib/), the wheel in .venv, or, in an
# installed slim, the LibTorch that slim was built with. Part of the installed package too.
include_guard(GLOBAL)
set(SLIM_TORCH "$ENV{SLIM_TORCH}" CACHE PATH "LibTorch folder (holds include/ and lib/)")
if(NOT SLIM_TORCH)
  file(GLOB slim_torch_found LIST_DIRECTORIES true ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(SLIM_TORCH_OF_BUILD)
    set(SLIM_TORCH ${SLIM_TORCH_OF_BUILD} CACHE PATH "" FORCE)
  elseif(slim_torch_found)
    list(GET slim_torch_found 0 slim_torch_found)
    set(SLIM_TORCH ${slim_torch_found} CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS ${SLIM_TORCH}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LibTorch not found: run slim's ./quickstart.sh, which installs it into .venv, or pass "
                      "-DSLIM_TORCH=DIR where DIR/lib/libtorch_cpu.so exists (looked in '${SLIM_TORCH}')")
endif()
get_filename_component(slim_site_packages ${SLIM_TORCH}/.. ABSOLUTE)
file(GLOB SLIM_TORCH_CUDA_DIRS LIST_DIRECTORIES true ${slim_site_packages}/nvidia/*/lib)

foreach(name torch_cpu c10)
  add_library(slim_import_${name} SHARED IMPORTED GLOBAL)
  set_target_properties(slim_import_${name} PROPERTIES IMPORTED_LOCATION ${SLIM_TORCH}/lib/lib${name}.so)
endforeach()
add_library(slim_torch INTERFACE)
add_library(slim::torch ALIAS slim_torch)
target_include_directories(slim_torch SYSTEM INTERFACE
  ${SLIM_TORCH}/include ${SLIM_TORCH}/include/torch/csrc/api/include)
target_link_libraries(slim_torch INTERFACE slim_import_torch_cpu slim_import_c10)
# The wheel's libtorch_cpu finds libcudart and libcupti by its own rpath; the linker needs to be told.
foreach(dir ${SLIM_TORCH}/lib ${SLIM_TORCH_CUDA_DIRS})
  target_link_options(slim_torch INTERFACE "LINKER:-rpath-link,${dir}")
endforeach()
