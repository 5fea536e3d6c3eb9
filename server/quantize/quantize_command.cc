#include "server/quantize/quantize_command.h"

#include <csignal>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/quantize/quantize_folder.h"
#include "server/weights/model_folder.h"

namespace c3po {
namespace {

constexpr char kUsage[] = "usage: c3pod quantize FOLDER|ORG/NAME OUT [--weights int8|int4] [--revision REV] [--json]\n";

volatile std::sig_atomic_t stopped = 0;

absl::Status Run(const QuantizeCommand& command) {
  C3PO_ASSIGN_OR_RETURN(const ModelFolder found, FindModelFolder({"IN", command.from, "--revision", command.revision}));
  QuantizeOptions options;
  options.from = found.path;
  options.to = command.to;
  options.weights = command.weights;
  options.stopped = [] { return stopped != 0; };
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, [](int) { stopped = 1; });
  C3PO_ASSIGN_OR_RETURN(const QuantizeResult result, QuantizeFolder(options));
  if (command.json) {
    const nlohmann::ordered_json json = {{"folder", command.to},
                                         {"weights", command.weights == WeightFormat::kInt8 ? "int8" : "int4"},
                                         {"tensors", result.tensors},
                                         {"quantized", result.quantized},
                                         {"bytes_from", result.bytes_from},
                                         {"bytes_to", result.bytes_to}};
    std::cout << json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n" << std::flush;
    return absl::OkStatus();
  }
  std::cout << command.to << ": " << result.quantized << " of " << result.tensors << " tensors quantized, "
            << result.bytes_from << " bytes before, " << result.bytes_to << " now\n"
            << std::flush;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<QuantizeCommand> ParseQuantizeCommand(int argc, const char* const* argv) {
  QuantizeCommand command;
  std::vector<std::string> folders;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = argument == "--weights" || argument == "--revision";
    if (has_value && ++i == argc) return absl::InvalidArgumentError(absl::StrCat(argument, " needs a value"));
    const std::string value = has_value ? argv[i] : "";
    if (argument == "--json") {
      command.json = true;
    } else if (argument == "--revision") {
      command.revision = value;
    } else if (argument == "--weights") {
      if (value != "int8" && value != "int4") {
        return absl::InvalidArgumentError(absl::StrCat("--weights \"", value, "\" is not one of int8, int4"));
      }
      command.weights = value == "int8" ? WeightFormat::kInt8 : WeightFormat::kInt4;
    } else if (argument.substr(0, 1) == "-") {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag ", argument));
    } else {
      folders.push_back(argument);
    }
  }
  if (folders.size() != 2) return absl::InvalidArgumentError("IN and OUT are needed");
  command.from = folders[0];
  command.to = folders[1];
  return command;
}

int QuantizeMain(int argc, char** argv) {
  const absl::StatusOr<QuantizeCommand> command = ParseQuantizeCommand(argc, argv);
  if (!command.ok()) {
    std::cerr << "c3pod quantize: " << command.status().message() << "\n" << kUsage;
    return 2;
  }
  const absl::Status status = Run(*command);
  if (!status.ok()) std::cerr << "c3pod quantize: " << status.message() << "\n";
  return status.ok() && std::cout.good() ? 0 : 1;
}

}  // namespace c3po
