# Flags, the precompiled header and helpers that all of slim's own targets share.
find_program(SLIM_CCACHE ccache)
if(SLIM_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${SLIM_CCACHE})
endif()
# -fPIC for programs too: one precompiled header serves all only if every flag is the same.
add_compile_options(-fPIC -Wall -Wextra -Wno-unused-parameter
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor> $<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>)
if(SLIM_WERROR)
  add_compile_options(-Werror)
endif()
if(SLIM_SANITIZE)
  # Clang's vptr and function checks need type information that LibTorch, which has no sanitizers, does not export.
  add_compile_options(-fsanitize=${SLIM_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all
    $<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=vptr,function>)
  add_link_options(-fsanitize=${SLIM_SANITIZE})
endif()
add_compile_definitions(BOOST_DLL_USE_STD_FS)
if(SLIM_FUZZ)  # its targets call functions that are private to libslim_core otherwise
  set(CMAKE_CXX_VISIBILITY_PRESET default)
  set(CMAKE_VISIBILITY_INLINES_HIDDEN OFF)
endif()

# Line numbers in backtraces, at half the compile time and size of full debug information.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
if(SLIM_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
endif()

add_library(slim_pch OBJECT ${CMAKE_SOURCE_DIR}/core/src/pch.cpp)
target_link_libraries(slim_pch PUBLIC slim::torch)
target_precompile_headers(slim_pch PRIVATE ${CMAKE_SOURCE_DIR}/core/src/pch.hpp)

# slim_use_pch(TARGET...): compile with the shared precompiled header. The targets may not add -D or -f flags of their own. With SLIM_UNITY
# libraries are compiled several files at a time, so that names in unnamed namespaces must differ within a library.
function(slim_use_pch)
  foreach(target ${ARGN})
    get_target_property(type ${target} TYPE)
    if(SLIM_UNITY AND NOT type STREQUAL "EXECUTABLE")
      set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
      target_compile_options(${target} PRIVATE -Wno-subobject-linkage)  # of classes over unnamed namespaces, which lie in no header
    endif()
    set_target_properties(${target} PROPERTIES DEFINE_SYMBOL "")
    target_link_libraries(${target} PRIVATE slim::torch)
    target_precompile_headers(${target} REUSE_FROM slim_pch)
  endforeach()
endfunction()

# slim_add_test(NAME SOURCES... [LIBS libs...]): a doctest program, known to ctest by its name.
function(slim_add_test name)
  if(NOT SLIM_TESTS)
    return()
  endif()
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(test_${name} ${arg_SOURCES} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(test_${name} PRIVATE slim_core slim_test_main ${arg_LIBS})
  target_include_directories(test_${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMAKE_SOURCE_DIR}/core/src)
  slim_use_pch(test_${name})
  set_target_properties(test_${name} PROPERTIES BUILD_RPATH "${CMAKE_BINARY_DIR}/lib;${SLIM_TORCH}/lib")
  add_test(NAME ${name} COMMAND test_${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS unit
    ENVIRONMENT "SLIM_BUILD_DIR=${CMAKE_BINARY_DIR};SLIM_SOURCE_DIR=${CMAKE_SOURCE_DIR};OMP_WAIT_POLICY=PASSIVE")
endfunction()
