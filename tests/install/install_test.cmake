# Installs slim, moves the installed tree, and uses it as others would: makes a plugin of every kind from its template, builds, tests
# and runs it; builds and runs the examples of embedding; looks for paths of the first installation.
#   cmake -DBUILD=build -DSOURCE=source -DPYTHON=python3 -P install_test.cmake
set(work ${BUILD}/tests/install-test)
file(REMOVE_RECURSE ${work})
file(MAKE_DIRECTORY ${work})

# run(NAME COMMAND...): stops the test if the command fails; its output is in ${NAME}.
function(run name)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${work} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE error)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: exit code ${code}\n${output}\n${error}")
  endif()
  set(${name} "${output}" PARENT_SCOPE)
endfunction()

run(install ${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/first --strip)
file(RENAME ${work}/first ${work}/moved)
set(slim ${work}/moved/bin/slim)

# Plugins: each in a folder of its own, all under names that are not the template's.
foreach(kind algorithm adapter backend format)
  run(made ${slim} plugins new ${kind} other-${kind} --dir ${work}/${kind})
  run(configured ${CMAKE_COMMAND} -S ${work}/${kind} -B ${work}/${kind}/build -G Ninja -DCMAKE_PREFIX_PATH=${work}/moved
    -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
  run(built ${CMAKE_COMMAND} --build ${work}/${kind}/build)
  run(tested ${CMAKE_CTEST_COMMAND} --test-dir ${work}/${kind}/build --output-on-failure)
  message(STATUS "${kind}:\n${tested}")
  run(listed ${slim} plugins list --plugin-dir ${work}/${kind}/build)
  if(NOT listed MATCHES "\n?${kind} +other-${kind} ")
    message(FATAL_ERROR "'slim plugins list' does not show ${kind} other-${kind}:\n${listed}")
  endif()
endforeach()

# The template's decoder computes what slim's own Llama computes: the same weights, the same tokens.
run(toy ${PYTHON} ${work}/adapter/toy.py ${work}/llama)
run(ours ${slim} eval llama/model --data llama/calib.txt --limit 8 --json --quiet --dtype float32)
run(theirs ${slim} eval llama/model --data llama/calib.txt --limit 8 --json --quiet --dtype float32 --adapter other-adapter
  --plugin-dir ${work}/adapter/build)
foreach(text ours theirs)
  string(JSON ${text}_perplexity GET "${${text}}" text_perplexity)
  string(SUBSTRING ${${text}_perplexity} 0 5 ${text}_digits)
endforeach()
if(NOT ours_digits STREQUAL theirs_digits)
  message(FATAL_ERROR "perplexity ${ours_perplexity} with the adapter qwen, ${theirs_perplexity} with the template's")
endif()

# Embedding.
run(configured ${CMAKE_COMMAND} -S ${SOURCE}/sdk/examples -B ${work}/examples -G Ninja -DCMAKE_PREFIX_PATH=${work}/moved)
run(built ${CMAKE_COMMAND} --build ${work}/examples)
run(cpp ${work}/examples/embed_cpp llama/model llama/calib.txt out-cpp)
run(c ${work}/examples/embed_c llama/model llama/calib.txt out-c)
run(python ${PYTHON} ${SOURCE}/sdk/examples/embed.py ${work}/moved llama/model llama/calib.txt out-python)
foreach(out out-c out-python)
  run(same ${CMAKE_COMMAND} -E compare_files ${work}/out-cpp/model.safetensors ${work}/${out}/model.safetensors)
endforeach()

file(GLOB_RECURSE files RELATIVE ${work}/moved ${work}/moved/*)
foreach(file ${files})
  if(file MATCHES "\\.cmake$")
    file(READ ${work}/moved/${file} content)
    string(FIND "${content}" "${work}" position)
    if(NOT position EQUAL -1)
      message(FATAL_ERROR "${file} holds the path of the first installation")
    endif()
  endif()
endforeach()
file(REMOVE_RECURSE ${work})
