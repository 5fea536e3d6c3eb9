#include "client/cli/request_flags.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/eval/option_setting.h"
#include "index/base/durable_file.h"
#include "index/base/number_text.h"
#include "index/types/optimization_options.h"

namespace c3po {
namespace {

constexpr char kOptimization[] = "C3PO";
constexpr char kGate[] = "C3PO gate";
constexpr char kSampling[] = "Sampling";
constexpr char kForm[] = "Form of the answer";

// A flag whose value is set in the message as soon as it is read.
template <typename T, typename Set>
CLI::Option* AddField(CLI::App& command, const char* group, const char* flag, const char* help, Set set) {
  return command
      .add_option_function<T>(
          flag, [set](const T& value) { set(value); }, help)
      ->group(group);
}

std::pair<uint32_t, float> ParseLogitBias(const std::string& text) {
  const size_t equals = text.find('=');
  uint32_t token_id = 0;
  float bias = 0;
  if (equals == std::string::npos || !absl::SimpleAtoi(text.substr(0, equals), &token_id) ||
      !absl::SimpleAtof(text.substr(equals + 1), &bias)) {
    throw CLI::ValidationError("--logit-bias", text + " is not TOKEN_ID=BIAS");
  }
  return {token_id, bias};
}

// Of a flag's file.
std::string FileText(const std::string& flag, const std::string& path) {
  constexpr int64_t kBytesMax = 1 << 20;
  absl::StatusOr<std::string> text = ReadWholeFile(path, kBytesMax);
  if (!text.ok()) throw CLI::ValidationError(flag, std::string(text.status().message()));
  return *std::move(text);
}

// The flag of one option, which sets its field by its name in options.proto. `Value` is what the server keeps of it.
template <typename Value>
CLI::Option* AddOptionFlag(CLI::App& command, const OptimizationOption& option, v1::OptimizationOptions* options) {
  const std::string flag = option.flag, help = option.help;
  const auto set = [=, name = std::string(option.name)](const std::string& text) {
    const absl::Status status = SetOption(name, text, options);
    if (!status.ok()) throw CLI::ValidationError(flag, std::string(status.message()));
  };
  if constexpr (std::is_same_v<Value, bool>) {
    return command.add_flag_function(
        flag, [set](int64_t count) { set(count > 0 ? "true" : "false"); }, help);
  } else if constexpr (std::is_enum_v<Value>) {
    std::vector<std::string> words;
    for (const Term<Value>& term : TermsOf<Value>()) words.emplace_back(term.flag);
    const auto set_word = [set](const std::string& word) { set(TermOfFlag<Value>(word)->name); };
    return command.add_option_function<std::string>(flag, set_word, help)->check(CLI::IsMember(words));
  } else if constexpr (std::is_same_v<Value, int>) {
    return command.add_option_function<uint32_t>(
        flag, [set](uint32_t value) { set(absl::StrCat(value)); }, help);
  } else if constexpr (std::is_same_v<Value, double> || std::is_same_v<Value, std::optional<double>>) {
    return command.add_option_function<double>(
        flag, [set](double value) { set(NumberText(value)); }, help);
  } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
    const auto* field = options->GetDescriptor()->FindFieldByName(option.name);
    const auto add = [options, field](const std::vector<std::string>& values) {
      for (const std::string& value : values) options->GetReflection()->AddString(options, field, value);
    };
    return command.add_option_function<std::vector<std::string>>(flag, add, help)->allow_extra_args(false);
  } else {
    static_assert(std::is_same_v<Value, std::string> || std::is_same_v<Value, std::vector<int>> ||
                  std::is_same_v<Value, MetadataFilter>);
    return command.add_option_function<std::string>(flag, set, help);
  }
}

// Where the fields come from that no flag sets.
void AddSourceFlags(CLI::App& command, v1::OptimizationOptions* options) {
  command
      .add_option_function<std::string>(
          "--preset", [=](const std::string&) { options->set_preset(v1::PRESET_PAPER); },
          "Published settings for what is not set, instead of profile and defaults")
      ->check(CLI::IsMember({"paper"}))
      ->group(kOptimization);
  command
      .add_option_function<uint64_t>(
          "--min-generation", [=](uint64_t value) { options->set_min_index_generation(value); },
          "Wait until the server holds this generation of the references, as a change's answer names it")
      ->group(kOptimization);
  command
      .add_flag_function(
          "--profile,!--no-profile", [=](int64_t count) { options->set_use_profile(count > 0); },
          "Whether the collection's profile fills what is not set (default: yes)")
      ->group(kOptimization);
}

}  // namespace

void AddOptimizationFlags(CLI::App& command, v1::OptimizationOptions* options) {
  const OptimizationSettings settings;  // for the types of its fields
  VisitOptions(settings, [&](const OptimizationOption& option, const auto& value) {
    const bool of_gate = absl::StartsWith(option.name, "gate.");
    AddOptionFlag<std::decay_t<decltype(value)>>(command, option, options)->group(of_gate ? kGate : kOptimization);
  });
  command.get_option("--epsilon")->excludes("--k");
  AddSourceFlags(command, options);
}

void AddSamplingFlags(CLI::App& command, v1::SamplingOptions* options) {
  AddField<double>(command, kSampling, "--temperature", "0 is greedy",
                   [=](double value) { options->set_temperature(value); });
  AddField<uint32_t>(command, kSampling, "--top-k", "Sample among this many tokens; 0: all",
                     [=](uint32_t value) { options->set_top_k(value); });
  AddField<double>(command, kSampling, "--top-p", "Sample among the likeliest tokens that sum to this",
                   [=](double value) { options->set_top_p(value); });
  AddField<double>(command, kSampling, "--min-p", "Sample among tokens at least this likely against the likeliest",
                   [=](double value) { options->set_min_p(value); });
  AddField<double>(command, kSampling, "--repetition-penalty", "1 is none",
                   [=](double value) { options->set_repetition_penalty(value); });
  AddField<uint64_t>(command, kSampling, "--seed", "Makes sampling repeatable",
                     [=](uint64_t value) { options->set_seed(value); });
  AddField<uint32_t>(command, kSampling, "--max-tokens", "End after this many tokens",
                     [=](uint32_t value) { options->set_max_tokens(value); });
  AddField<std::vector<std::string>>(command, kSampling, "--stop", "End before this text; may be given several times",
                                     [=](const std::vector<std::string>& values) {
                                       for (const std::string& value : values) options->add_stop(value);
                                     })
      ->allow_extra_args(false);
  AddField<std::vector<std::string>>(command, kSampling, "--logit-bias",
                                     "TOKEN_ID=BIAS, -100 to 100, added to its logit; may be given several times",
                                     [=](const std::vector<std::string>& values) {
                                       for (const std::string& value : values) {
                                         const auto [token_id, bias] = ParseLogitBias(value);
                                         (*options->mutable_logit_bias())[token_id] = bias;
                                       }
                                     })
      ->allow_extra_args(false);
  AddField<uint32_t>(command, kSampling, "--logprobs", "Log-probabilities of this many likeliest tokens (with --json)",
                     [=](uint32_t value) { options->set_logprobs(value); });
  command
      .add_flag_function(
          "--ignore-eos", [=](int64_t count) { options->set_ignore_eos(count > 0); },
          "Go on after the end-of-sequence token")
      ->group(kSampling);
}

void AddFormFlags(CLI::App& command, v1::StructuredOutput* form) {
  const std::vector<CLI::Option*> forms = {
      command.add_flag_function(
          "--json-object", [=](int64_t) { form->set_json_object(true); }, "The answer is a JSON object"),
      AddField<std::string>(command, kForm, "--json-schema", "File of the JSON schema that the answer is of",
                            [=](const std::string& path) { form->set_json_schema(FileText("--json-schema", path)); }),
      AddField<std::string>(command, kForm, "--regex", "The whole answer matches this regular expression",
                            [=](const std::string& regex) { form->set_regex(regex); }),
      AddField<std::string>(command, kForm, "--grammar",
                            "File of the GBNF grammar that the answer is of, from its rule root on",
                            [=](const std::string& path) { form->set_grammar(FileText("--grammar", path)); }),
      AddField<std::vector<std::string>>(command, kForm, "--one-of",
                                         "The answer is this text; given several times, one of them",
                                         [=](const std::vector<std::string>& texts) {
                                           for (const std::string& text : texts)
                                             form->mutable_one_of()->add_texts(text);
                                         })
          ->allow_extra_args(false)};
  forms.front()->group(kForm);
  for (CLI::Option* one : forms) {
    for (CLI::Option* other : forms) {
      if (one != other) one->excludes(other);
    }
  }
}

}  // namespace c3po
