# Writes slim/interface.hpp: the fingerprint of the headers whose classes cross between slim and a plugin, without their comments and
# spaces. Host and plugin each get the one of the headers that they were compiled against; see docs/compatibility.md. The descriptor
# and the version have rules of their own.
file(GLOB interface_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/core/include/slim/*.hpp)
list(FILTER interface_headers EXCLUDE REGEX "/(version|export|parallel|phase|plugin)\\.hpp$")
list(SORT interface_headers)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${interface_headers})
set(interface_text "")
foreach(header ${interface_headers})
  file(READ ${header} text)
  string(REGEX REPLACE "//[^\n]*" "" text "${text}")
  string(REGEX REPLACE "[ \t\r\n]+" " " text "${text}")
  get_filename_component(name ${header} NAME)
  string(APPEND interface_text "${name}:${text}\n")
endforeach()
string(SHA256 SLIM_INTERFACE "${interface_text}")
string(SUBSTRING ${SLIM_INTERFACE} 0 16 SLIM_INTERFACE)
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/include/slim/interface.hpp CONTENT [[
#pragma once
/// Fingerprint of the interface headers beside this file; made when slim is configured.
#define SLIM_INTERFACE "@SLIM_INTERFACE@"
]] @ONLY)
