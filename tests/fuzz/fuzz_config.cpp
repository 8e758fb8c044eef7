#include "config/run_config.h"
#include "input.h"

using namespace slim;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::MemoryFile file(fuzz::text_of(data, size));
  RunConfig config;
  if (!read_config_file(file.path(), config).ok()) return 0;
  (void)check_plugin_options(config);
  (void)output_configs(config);
  for (const LayerRule& rule : config.rules) (void)parse_rule(rule.text());
  return 0;
}
