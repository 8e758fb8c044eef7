# Runs doxygen over the public headers; a warning fails the test.
#   cmake -DDOXYGEN=doxygen -DOUTPUT=DIR -P reference_test.cmake    (in the repository's root)
file(MAKE_DIRECTORY ${OUTPUT})
file(READ Doxyfile settings)
file(WRITE ${OUTPUT}/Doxyfile "${settings}OUTPUT_DIRECTORY = ${OUTPUT}\n")
execute_process(COMMAND ${DOXYGEN} ${OUTPUT}/Doxyfile RESULT_VARIABLE code ERROR_VARIABLE warnings)
if(NOT code EQUAL 0 OR NOT warnings STREQUAL "")
  message(FATAL_ERROR "doxygen: exit code ${code}\n${warnings}")
endif()
