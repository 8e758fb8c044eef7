# slim_add_plugin(KIND ID [LIBS libs...] [TEST_MODEL DIR]): one folder, one shared library libslim_KIND_ID.so that exports only
# slim_plugin_v1. KIND: algorithm, adapter, backend, format. Sources: every *.cpp of the folder.
# Serves slim's own tree, where *_test.cpp become the test program `ID_KIND`, and through find_package(slim) plugins outside of it:
# those have no precompiled header; with enable_testing() (or include(CTest)) they get the test `validate_ID`, slim's conformance
# kit, in which an adapter reads the checkpoint TEST_MODEL (relative to the build folder).
include_guard(GLOBAL)
include(GNUInstallDirs)
add_custom_target(slim_plugins)
set(SLIM_PLUGIN_EXPORTS ${CMAKE_CURRENT_LIST_DIR}/plugin.map)
if(NOT SLIM_SANITIZE)  # whose functions come with the program that loads the library
  set(SLIM_NO_UNDEFINED LINKER:-z,defs)
endif()
function(slim_add_plugin kind id)
  cmake_parse_arguments(arg "" "TEST_MODEL" "LIBS" ${ARGN})
  string(REPLACE "-" "_" file_id ${id})
  set(target slim_${kind}_${file_id})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  if(NOT COMMAND slim_use_pch)  # a build folder may lie inside an outside plugin's folder
    list(FILTER sources EXCLUDE REGEX "^${CMAKE_CURRENT_BINARY_DIR}/")
  endif()
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")

  add_library(${target}_objects OBJECT ${sources})
  target_link_libraries(${target}_objects PUBLIC slim::core ${arg_LIBS})
  target_include_directories(${target}_objects PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  set(directory ${CMAKE_CURRENT_BINARY_DIR})
  if(COMMAND slim_use_pch)
    slim_use_pch(${target}_objects)
    set(directory ${CMAKE_BINARY_DIR}/lib/slim/plugins)
  else()
    set_target_properties(${target}_objects PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF
      CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  endif()
  add_library(${target} MODULE $<TARGET_OBJECTS:${target}_objects>)
  target_link_libraries(${target} PRIVATE slim::core slim::torch ${arg_LIBS})
  target_link_options(${target} PRIVATE ${SLIM_NO_UNDEFINED} LINKER:-z,nodelete LINKER:--exclude-libs,ALL
    LINKER:--version-script=${SLIM_PLUGIN_EXPORTS})
  set_target_properties(${target} PROPERTIES LINK_DEPENDS ${SLIM_PLUGIN_EXPORTS} LINKER_LANGUAGE CXX
    LIBRARY_OUTPUT_DIRECTORY ${directory} INSTALL_RPATH "$ORIGIN/../..")
  install(TARGETS ${target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/slim/plugins)
  add_dependencies(slim_plugins ${target})
  if(tests AND COMMAND slim_add_test)
    slim_add_test(${file_id}_${kind} SOURCES ${tests} LIBS ${target}_objects ${arg_LIBS})
  endif()
  if(TARGET slim::slim)
    set(model)
    if(arg_TEST_MODEL)
      set(model --model ${arg_TEST_MODEL})
    endif()
    add_test(NAME validate_${id} COMMAND slim::slim plugins validate $<TARGET_FILE:${target}> ${model}
      WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endif()
endfunction()
