#pragma once
#include <string>

namespace slim::cli {

/// Says what an option of other tools is called here ("--overwrite" for --force), or that nothing is needed for it; empty for a word that none of
/// them has. In `name`, letter case, '-' and '_' do not count.
std::string advice_for(const std::string& name);

}  // namespace slim::cli
