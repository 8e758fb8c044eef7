#include "compress/cann_tool.h"

#include <ATen/ATen.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "checkpoint/file.h"

extern char** environ;  // NOLINT: POSIX declares it nowhere

namespace slim {
namespace {

Status run_program(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  if (const int error = ::posix_spawn(&child, argv[0], nullptr, nullptr, argv.data(), environ); error != 0) {
    return system_error(words[0], "run", error);
  }
  int state = 0;
  while (::waitpid(child, &state, 0) < 0) {
    if (errno != EINTR) return system_error(words[0], "wait for", errno);
  }
  if (WIFEXITED(state) && WEXITSTATUS(state) == 0) return {};
  const std::string how = WIFSIGNALED(state) ? "signal " + std::to_string(WTERMSIG(state))
                                             : "exit code " + std::to_string(WEXITSTATUS(state));
  return {Code::kInternal, words[0] + " failed (" + how + ") on a matrix of " + words[1] + " x " + words[2] +
                               " fractals; see its messages above"};
}

Status write_bytes(const std::string& path, const at::Tensor& tensor) {
  SLIM_ASSIGN(const File file, File::create(path));
  return file.write_at(0, {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()});
}

Result<at::Tensor> read_bytes(const std::string& path) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(const int64_t size, file.size());
  at::Tensor bytes = at::empty({size}, at::kChar);
  SLIM_TRY(file.read_at(0, {static_cast<std::byte*>(bytes.data_ptr()), bytes.nbytes()}));
  return bytes;
}

/// {tile rows, tile columns, compressed length}
Result<at::Tensor> read_info(const std::string& path) {
  SLIM_ASSIGN(const at::Tensor bytes, read_bytes(path));
  if (bytes.numel() == 12) return bytes.view(at::kInt).to(at::kLong);
  if (bytes.numel() == 24) return bytes.view(at::kLong);
  return Status(Code::kCorrupt, path + ": " + std::to_string(bytes.numel()) +
                                    " bytes, expected three integers of 4 or 8 bytes");
}

}  // namespace

Result<CompressedWeight> cann_compress(const std::string& tool, const std::string& scratch,
                                       const at::Tensor& weight) {
  const at::Tensor nz = to_nz(weight);
  const auto path = [&](const char* name) { return scratch + "/" + name; };
  SLIM_TRY(write_bytes(path("cann_in"), nz));
  SLIM_TRY(run_program({tool, std::to_string(nz.size(0)), std::to_string(nz.size(1)), "1", "1", "1", "0", "0",
                        path("cann_in"), path("cann_out"), path("cann_index"), path("cann_info")}));
  CompressedWeight result;
  SLIM_ASSIGN(const at::Tensor info, read_info(path("cann_info")));
  SLIM_ASSIGN(const at::Tensor stream, read_bytes(path("cann_out")));
  SLIM_ASSIGN(result.index, read_bytes(path("cann_index")));
  const auto* numbers = info.const_data_ptr<int64_t>();
  if (numbers[2] < 0 || numbers[2] > stream.numel()) {
    return Status(Code::kCorrupt, tool + ": info names " + std::to_string(numbers[2]) +
                                      " compressed bytes, the program wrote " +
                                      std::to_string(stream.numel()));
  }
  const int64_t index_bytes = 8 * tile_count(weight.size(0), weight.size(1));
  if (result.index.numel() != index_bytes) {
    return Status(Code::kCorrupt, tool + ": the index has " + std::to_string(result.index.numel()) +
                                      " bytes, expected " + std::to_string(index_bytes));
  }
  result.weight = stream.narrow(0, 0, numbers[2]).contiguous();
  result.info = at::tensor({numbers[1], numbers[0], weight.size(1), weight.size(0), int64_t{1}}, at::kLong);
  for (const char* name : {"cann_in", "cann_out", "cann_index", "cann_info"}) {
    std::error_code ignored;
    std::filesystem::remove(path(name), ignored);
  }
  return result;
}

}  // namespace slim
