#pragma once
#include <string>

namespace slim::cli {

/// Says what an option of other tools is called here: "for --verbose: ..."; empty for a word that none of them has. `name`: without dashes in front;
/// letter case, '-' and '_' do not count.
std::string advice_for(const std::string& name);

}  // namespace slim::cli
