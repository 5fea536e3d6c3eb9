#include "server/quantize/quantize_command.h"

#include <csignal>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/quantize/calibration.h"
#include "server/quantize/model_check.h"
#include "server/quantize/quantize_folder.h"
#include "server/text/tokenizer.h"
#include "server/weights/model_folder.h"

namespace c3po {
namespace {

constexpr char kUsage[] =
    "usage: c3pod quantize FOLDER|ORG/NAME OUT [--weights int8|int4] [--calibration TEXT] [--check TEXT]\n"
    "                      [--check-window TOKENS] [--revision REV] [--json]\n"
    "       c3pod quantize FOLDER|FILE.gguf|ORG/NAME --check TEXT [...]    measures, and writes nothing\n";

volatile std::sig_atomic_t stopped = 0;

const char* NameOf(WeightFormat weights) { return weights == WeightFormat::kInt8 ? "int8" : "int4"; }

// What is printed at the end: lines to read, or a JSON object.
struct Answer {
  std::string text;
  nlohmann::ordered_json json;
};

// Of the model in `from`.
absl::StatusOr<std::shared_ptr<const cpu::ActivationSquares>> CalibrateOn(const std::string& path,
                                                                          const std::string& from, Answer& answer) {
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::LoadFolder(from));
  C3PO_ASSIGN_OR_RETURN(const TextTokens text, ReadText(path, *tokenizer));
  const absl::StatusOr<Calibration> calibration = Calibrate(from, text);
  if (!calibration.ok()) {
    return absl::Status(calibration.status().code(), absl::StrCat(path, ": ", calibration.status().message()));
  }
  const cpu::ActivationSquares::Reach reach = calibration->squares->reach();
  absl::StrAppend(&answer.text, path, ": calibrated on ", calibration->tokens, " tokens, which reached ",
                  reach.units - reach.unreached, " of ", reach.units, " matrices\n");
  answer.json["calibration"] = {
      {"text", path}, {"tokens", calibration->tokens}, {"matrices", reach.units}, {"unreached", reach.unreached}};
  return calibration->squares;
}

absl::Status WriteFolder(const QuantizeCommand& command, const QuantizeOptions& options, Answer& answer) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, [](int) { stopped = 1; });
  const absl::StatusOr<QuantizeResult> result = QuantizeFolder(options);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_DFL);
  if (!result.ok()) return result.status();
  answer.json.update({{"folder", command.to},
                      {"weights", NameOf(command.weights)},
                      {"tensors", result->tensors},
                      {"quantized", result->quantized},
                      {"bytes_from", result->bytes_from},
                      {"bytes_to", result->bytes_to}});
  absl::StrAppend(&answer.text, command.to, ": ", result->quantized, " of ", result->tensors, " tensors quantized, ",
                  result->bytes_from, " bytes before, ", result->bytes_to, " now\n");
  return absl::OkStatus();
}

absl::Status Run(const QuantizeCommand& command, Answer& answer) {
  C3PO_ASSIGN_OR_RETURN(const ModelFolder found,
                        FindModelFolder({"IN", command.from, "--revision", command.revision, command.to.empty()}));
  std::shared_ptr<const cpu::ActivationSquares> columns;
  if (!command.calibration.empty()) {
    C3PO_ASSIGN_OR_RETURN(columns, CalibrateOn(command.calibration, found.path, answer));
  }
  if (!command.to.empty()) {
    QuantizeOptions options;
    options.from = found.path;
    options.to = command.to;
    options.weights = command.weights;
    options.stopped = [] { return stopped != 0; };
    if (columns != nullptr) {
      C3PO_ASSIGN_OR_RETURN(options.columns, WeightingOf(found.path, columns));
    }
    C3PO_RETURN_IF_ERROR(WriteFolder(command, options, answer));
  }
  if (command.check.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const ModelCheck check, CheckModel({found.path, command.to, NameOf(command.weights), columns,
                                                            command.check, command.check_window}));
  absl::StrAppend(&answer.text, CheckText(check));
  answer.json["check"] = nlohmann::ordered_json::parse(CheckJson(check));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<QuantizeCommand> ParseQuantizeCommand(int argc, const char* const* argv) {
  QuantizeCommand command;
  std::vector<std::string> folders;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = argument == "--weights" || argument == "--revision" || argument == "--calibration" ||
                           argument == "--check" || argument == "--check-window";
    if (has_value && ++i == argc) return absl::InvalidArgumentError(absl::StrCat(argument, " needs a value"));
    const std::string value = has_value ? argv[i] : "";
    if (argument == "--json") {
      command.json = true;
    } else if (argument == "--revision") {
      command.revision = value;
    } else if (argument == "--calibration") {
      command.calibration = value;
    } else if (argument == "--check") {
      command.check = value;
    } else if (argument == "--check-window") {
      if (!absl::SimpleAtoi(value, &command.check_window) || command.check_window < 4) {
        return absl::InvalidArgumentError(absl::StrCat("--check-window \"", value, "\" is no number of at least 4"));
      }
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
  const bool measures = folders.size() == 1 && !command.check.empty();
  if (folders.size() != 2 && !measures) {
    return absl::InvalidArgumentError("IN and OUT are needed, or IN and --check TEXT");
  }
  command.from = folders[0];
  if (!measures) command.to = folders[1];
  return command;
}

int QuantizeMain(int argc, char** argv) {
  const absl::StatusOr<QuantizeCommand> command = ParseQuantizeCommand(argc, argv);
  if (!command.ok()) {
    std::cerr << "c3pod quantize: " << command.status().message() << "\n" << kUsage;
    return 2;
  }
  Answer answer;
  const absl::Status status = Run(*command, answer);
  // What was done before a failure is told, too: a folder that is written stays.
  if (status.ok() || !command->json) {
    std::cout << (command->json
                      ? answer.json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
                      : answer.text)
              << std::flush;
  }
  if (!status.ok()) std::cerr << "c3pod quantize: " << status.message() << "\n";
  return status.ok() && std::cout.good() ? 0 : 1;
}

}  // namespace c3po
