# Imports Arrow C++ with its parquet reader as slim::arrow, if it is there: without it slim builds and reads no parquet files.
# Where: -DSLIM_ARROW=DIR, the environment's SLIM_ARROW (a folder with include/ and libarrow.so.* or lib/), or the pyarrow wheel
# beside LibTorch or in .venv.
include_guard(GLOBAL)
set(SLIM_ARROW "$ENV{SLIM_ARROW}" CACHE PATH "Arrow folder (holds include/ and libarrow.so.*): the pyarrow wheel's")
set(slim_arrow_places ${SLIM_ARROW})
if(NOT SLIM_ARROW)
  file(GLOB slim_arrow_places LIST_DIRECTORIES true ${SLIM_TORCH}/../pyarrow
    ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/pyarrow)
endif()
foreach(place ${slim_arrow_places})
  # The wheel has no unversioned names; several versions do not lie in one folder.
  file(GLOB slim_libarrow ${place}/libarrow.so.* ${place}/lib/libarrow.so ${place}/libarrow.so)
  file(GLOB slim_libparquet ${place}/libparquet.so.* ${place}/lib/libparquet.so ${place}/libparquet.so)
  if(slim_libarrow AND slim_libparquet AND EXISTS ${place}/include/parquet/arrow/reader.h)
    list(GET slim_libarrow 0 slim_libarrow)
    list(GET slim_libparquet 0 slim_libparquet)
    get_filename_component(SLIM_ARROW_LIBRARY_DIR ${slim_libarrow} DIRECTORY)
    add_library(slim_arrow INTERFACE)
    add_library(slim::arrow ALIAS slim_arrow)
    target_include_directories(slim_arrow SYSTEM INTERFACE ${place}/include)
    target_link_libraries(slim_arrow INTERFACE ${slim_libparquet} ${slim_libarrow})
    break()
  endif()
endforeach()
if(NOT TARGET slim::arrow)
  message(STATUS "Arrow not found: this build reads no parquet files (install pyarrow into .venv, or pass -DSLIM_ARROW=DIR)")
endif()
