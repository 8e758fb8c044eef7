#include "synonyms.h"

#include <cctype>
#include <map>

namespace slim::cli {
namespace {

/// By meaning, where the nearest spelling is another thing: of llm-compressor, AngelSlim, msmodelslim, AutoAWQ, GPTQModel, llama.cpp and AutoRound.
const std::map<std::string, std::string>& advice() {
  static const std::string kModel = "--model DIR", kOutput = "--output DIR", kCalib = "--calib PATH",
                           kSamples = "--num-samples N", kLength = "--max-seq-length N",
                           kBits = "--scheme w4a16 (w8a16, w8a8, fp8_dynamic, ...)",
                           kNothing = "nothing is needed: slim runs no code of checkpoints",
                           kSize = "--max-shard-size 4GB";
  static const std::map<std::string, std::string> all = {
      {"modelpath", kModel},
      {"modelid", kModel},
      {"pretrainedmodel", kModel},
      {"savedirectory", kOutput},
      {"savepath", kOutput},
      {"savedir", kOutput},
      {"outputdir", kOutput},
      {"outputpath", kOutput},
      {"quantpath", kOutput},
      {"outfile", kOutput},
      {"calibimages", kCalib},
      {"calibdata", kCalib},
      {"calibfile", kCalib},
      {"dataset", kCalib},
      {"datapath", kCalib},
      {"calibsamples", kSamples},
      {"nsamples", kSamples},
      {"numcalibrationsamples", kSamples},
      {"seqlen", kLength},
      {"seqlength", kLength},
      {"maxsequencelength", kLength},
      {"maxlength", kLength},
      {"bits", kBits},
      {"wbit", kBits},
      {"wbits", kBits},
      {"abit", kBits},
      {"quanttype", kBits},
      {"zeropoint", "--scheme w4a16_asym"},
      {"sym", "--scheme w4a16 (symmetric) or w4a16_asym"},
      {"descact", "--set gptq.desc_act=true"},
      {"actorder", "--set gptq.desc_act=true"},
      {"damppercent", "--set gptq.damp_percent=0.01"},
      {"dampeningfraction", "--set gptq.damp_percent=0.01"},
      {"partfilesize", kSize},
      {"maxshard", kSize},
      {"antimethod", "--plugin smooth,int8 --set smooth.method=m2"},
      {"actmethod", "--set sparse.act_method=1 (W8A8S) or --set int8.activation_range=..."},
      {"openoutlier", "--set sparse.open_outlier=true"},
      {"islowbit", "--set sparse.is_lowbit=true"},
      {"cosparse", "--set sparse.co_sparse=true"},
      {"isdynamic", "--scheme w8a8 (dynamic) or w8a8_static"},
      {"fraction", "--set sparse.fraction=0.01"},
      {"usesigma", "--set sparse.use_sigma=true"},
      {"sigmafactor", "--set sparse.sigma_factor=3"},
      {"torchdtype",
       "--dtype bfloat16 (of the forward pass) or --output-dtype bfloat16 (of what stays in float)"},
      {"device", "--backend cpu, cuda or npu"},
      {"devicetype", "--backend cpu, cuda or npu"},
      {"devicemap", "--backend cpu, cuda or npu"},
      {"gpu", "--backend cuda"},
      {"modeltype", "--adapter ID (see `slim plugins list`); config.json says it by itself"},
      {"force", "--overwrite"},
      {"yes", "nothing is needed: slim asks no questions; --overwrite replaces an output"},
      {"dryrun", "`slim plan` with the same options"},
      {"verbose",
       "nothing is needed: progress and the report are always shown; --quiet leaves progress out, --json is "
       "for programs"},
      {"logfile", "2> FILE: progress goes to standard error, the report to standard output"},
      {"trustremotecode", kNothing},
      {"lowmemory", "--max-memory 16GB"},
      {"lowcpumemusage", "--max-memory 16GB"},
      {"exclude", "--ignore NAME"},
      {"ignorelayers", "--ignore NAME"},
      {"version", "`slim --version`, alone"},
  };
  return all;
}

}  // namespace

std::string advice_for(const std::string& name) {
  std::string plain;
  for (const char c : name)
    if (c != '-' && c != '_') plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto found = advice().find(plain);
  return found == advice().end() ? "" : found->second;
}

}  // namespace slim::cli
