#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/cli/chat_flags.h"
#include "client/cli/commands.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/cli/request_flags.h"
#include "client/cli/sample_file.h"
#include "client/cli/terminal.h"
#include "client/eval/item_runner.h"
#include "client/eval/known_questions.h"
#include "client/eval/statistics.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ScoreFlags {
  std::optional<std::string> prompt;
  ChatFlags chat;
  std::optional<uint32_t> experts_per_token;
  std::vector<std::string> continuations;
  std::vector<std::string> choices;
  std::string path;
  uint64_t limit = 0;  // 0: all
  bool strict = false;
  bool json = false;
  bool explain = false;
  bool include_references = false;
  v1::OptimizationOptions optimization;
};

constexpr uint64_t kToldWarningsMax = 10;

double PerToken(const v1::ContinuationScore& score) {
  return score.token_count() == 0 ? score.log_likelihood() : score.log_likelihood() / score.token_count();
}

// What a choice is made by: the label offset's score where the server applied one.
double ChoiceScore(const v1::ContinuationScore& score) {
  return score.has_offset_score() ? score.offset_score() : PerToken(score);
}

// The best choice, the first of equals. `scores` is not empty.
int BestChoice(const v1::ScoreResponse& response) {
  int best = 0;
  for (int i = 1; i < response.scores_size(); ++i) {
    if (ChoiceScore(response.scores(i)) > ChoiceScore(response.scores(best))) best = i;
  }
  return best;
}

absl::StatusOr<v1::ScoreResponse> Score(Session& session, const ScoreFlags& flags, v1::ScoreRequest request) {
  if (flags.experts_per_token) request.set_experts_per_token(*flags.experts_per_token);
  if (flags.optimization.ByteSizeLong() > 0) *request.mutable_optimization() = flags.optimization;
  C3PO_ASSIGN_OR_RETURN(v1::ScoreResponse response, session.client->Score(request, session.call_options()));
  if (response.scores_size() != request.continuations_size() || response.scores_size() == 0) {
    return absl::InternalError(
        absl::StrCat("the server scored ", response.scores_size(), " continuations of ", request.continuations_size()));
  }
  // What is not a number loses every comparison, and the first choice would be the best.
  for (const v1::ContinuationScore& score : response.scores()) {
    if (!std::isfinite(score.log_likelihood())) {
      return absl::InternalError(absl::StrCat("the server gave a log-likelihood of ", score.log_likelihood()));
    }
  }
  return response;
}

absl::Status ScoreOne(Session& session, const ScoreFlags& flags) {
  const bool choose = !flags.choices.empty();
  const std::vector<std::string>& texts = choose ? flags.choices : flags.continuations;
  v1::ScoreRequest request;
  if (flags.chat.wanted()) {
    C3PO_RETURN_IF_ERROR(FillChat(flags.chat, *flags.prompt, *request.mutable_chat()));
  } else {
    request.set_prompt(*flags.prompt);
  }
  for (const std::string& text : texts) request.add_continuations(text);
  C3PO_ASSIGN_OR_RETURN(const v1::ScoreResponse response, Score(session, flags, request));
  if (flags.json) return PrintJsonLine(response);
  if (flags.explain) absl::PrintF("%s\n", ExplainOptimization(response.optimization(), session.terminal));
  const bool with_offset = response.optimization().offset_applied();
  Table table(with_offset ? "lrrrrll" : "lrrrll");
  std::vector<std::string> header = {"", "log-likelihood", "tokens", "per token", "greedy", "continuation"};
  if (with_offset) header.insert(header.begin() + 4, "with offset");
  table.AddRow(header);
  const int best = choose ? BestChoice(response) : -1;
  for (int i = 0; i < response.scores_size(); ++i) {
    const v1::ContinuationScore& score = response.scores(i);
    std::vector<std::string> row = {i == best ? "→" : "",
                                    absl::StrFormat("%.4f", score.log_likelihood()),
                                    absl::StrCat(score.token_count()),
                                    absl::StrFormat("%.4f", PerToken(score)),
                                    score.is_greedy() ? "yes" : "no",
                                    absl::StrCat("\"", Snippet(texts[i], 60), "\"")};
    if (with_offset) row.insert(row.begin() + 4, absl::StrFormat("%.4f", score.offset_score()));
    table.AddRow(row);
  }
  absl::PrintF("%s", table.Render(session.terminal));
  if (flags.explain) absl::PrintF("\n%s", ExplainTimings(response.timings(), session.terminal));
  for (const std::string& warning : response.optimization().warnings()) {
    absl::FPrintF(stderr, "warning: %s\n", WithoutControls(warning));
  }
  return absl::OkStatus();
}

// Whether the model gets a sample right: with choices the best one (ChoiceScore) is the answer;
// without, every token of the answer is the model's likeliest.
struct Judgment {
  std::string predicted;  // Empty without choices.
  bool correct = false;
};

Judgment Judge(const v1::ReferenceSample& sample, const v1::ScoreResponse& response) {
  if (sample.choices_size() == 0) return {"", response.scores(0).is_greedy()};
  const std::string& predicted = sample.choices(BestChoice(response));
  return {predicted, predicted == sample.answer()};
}

absl::Status PrintItem(const SampleLine& line, const Judgment& judgment, const v1::ScoreResponse& response) {
  C3PO_ASSIGN_OR_RETURN(const std::string json, ToJsonLine(response));
  absl::PrintF("{\"line\":%d,\"correct\":%s,\"predicted\":%s,\"answer\":%s,\"response\":%s}\n", line.number,
               judgment.correct ? "true" : "false", JsonText(judgment.predicted), JsonText(line.sample.answer()), json);
  return std::fflush(stdout) == 0 ? absl::OkStatus() : absl::DataLossError("stdout cannot be written");
}

// What is wrong with one sample; any other error would meet every sample.
bool IsOfSample(const absl::Status& status) { return absl::IsInvalidArgument(status) || absl::IsInternal(status); }

// Accuracy over a file of samples, one call at a time.
class FileScoring {
 public:
  FileScoring(Session& session, const ScoreFlags& flags)
      : session_(session),
        flags_(flags),
        collection_(flags.optimization.has_collection() ? flags.optimization.collection() : "default"),
        lines_(SampleFile::CountLines(flags.path)),
        progress_(session.terminal, "samples", flags.limit == 0 ? lines_ : std::min(lines_, flags.limit)),
        malformed_(flags.path) {}

  absl::Status Run() {
    C3PO_ASSIGN_OR_RETURN(SampleFile file, SampleFile::Open(flags_.path));
    while (flags_.limit == 0 || items_ + failed_ < flags_.limit) {
      C3PO_ASSIGN_OR_RETURN(const std::optional<SampleLine> line, file.Next());
      if (!line) break;
      if (!line->status.ok()) {
        progress_.Clear();
        malformed_.Report(line->number, std::string(line->status.message()));
        continue;
      }
      const absl::Status status = ScoreLine(*line);
      if (!status.ok()) {
        progress_.Clear();
        const std::string told = absl::StrCat(flags_.path, ":", line->number, ": ", status.message());
        if (!IsOfSample(status) || (items_ == 0 && failed_ + 1 == kFailuresMax)) {
          return absl::Status(status.code(), told);
        }
        if (++failed_ <= kPrintedMax) absl::FPrintF(stderr, "%s\n", WithoutControls(told));
      }
      progress_.Update(items_, absl::StrCat(correct_, " correct"));
    }
    progress_.Clear();
    if (warned_ > kToldWarningsMax) absl::FPrintF(stderr, "and %d warnings more\n", warned_ - kToldWarningsMax);
    PrintSummary();
    if (failed_ > 0) {
      return absl::InternalError(
          absl::StrCat(failed_, failed_ == 1 ? " sample" : " samples", " failed and count nowhere"));
    }
    C3PO_RETURN_IF_ERROR(malformed_.Outcome(flags_.strict));
    if (items_ > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(flags_.path, known_ + malformed_.count() == 0 ? ": holds no sample" : ": no sample was scored"));
  }

 private:
  static constexpr uint64_t kPrintedMax = 20;
  static constexpr uint64_t kFailuresMax = 5;  // With no answer among them: something else is wrong.

  // Counts the sample: as one that is known, or right or wrong.
  absl::Status ScoreLine(const SampleLine& line) {
    if (flags_.optimization.method() != v1::METHOD_NONE || flags_.optimization.use_offset()) {
      C3PO_ASSIGN_OR_RETURN(const bool known, IsAmongReferences(*session_.client, collection_, line.sample.prompt(),
                                                                session_.call_options()));
      known_ += known && !flags_.include_references ? 1 : 0;
      asked_though_known_ += known && flags_.include_references ? 1 : 0;
      if (known && !flags_.include_references) return absl::OkStatus();
    }
    v1::ScoreRequest request;
    if (flags_.chat.wanted()) {
      C3PO_RETURN_IF_ERROR(FillChat(flags_.chat, line.sample.prompt(), *request.mutable_chat()));
    } else {
      request.set_prompt(line.sample.prompt());
    }
    *request.mutable_continuations() = line.sample.choices();
    if (line.sample.choices().empty()) request.add_continuations(line.sample.answer());
    C3PO_ASSIGN_OR_RETURN(const v1::ScoreResponse response, Score(session_, flags_, request));
    const Judgment judgment = Judge(line.sample, response);
    ++items_;
    correct_ += judgment.correct ? 1 : 0;
    const std::string gate = GateName(response.optimization().gate());
    if (!gate.empty() && response.optimization().gate() != v1::GATE_DECISION_APPLIED) ++left_alone_[gate];
    for (const std::string& warning : response.optimization().warnings()) {
      if (warned_++ >= kToldWarningsMax) continue;
      progress_.Clear();
      absl::FPrintF(stderr, "%s:%d: warning: %s\n", flags_.path, line.number, WithoutControls(warning));
    }
    return flags_.json ? PrintItem(line, judgment, response) : absl::OkStatus();
  }

  void PrintSummary() const {
    const Estimate accuracy = Proportion(static_cast<int64_t>(correct_), static_cast<int64_t>(items_));
    if (flags_.json) {
      absl::PrintF(
          "{\"summary\":{\"items\":%d,\"correct\":%d,\"accuracy\":%.6f,\"accuracy_low\":%.6f,\"accuracy_high\":%.6f,"
          "\"malformed\":%d,\"failed\":%d,\"among_references\":%d,\"left_alone\":{%s}}}\n",
          items_, correct_, accuracy.value, accuracy.low, accuracy.high, malformed_.count(), failed_,
          known_ + asked_though_known_,
          LeftAlone([](const auto& gate) { return absl::StrCat(JsonText(gate.first), ":", gate.second); }));
    } else if (items_ == 0) {
      absl::PrintF("0 of 0 correct, %d malformed\n", malformed_.count());
    } else {
      absl::PrintF("%d of %d correct (%.1f %% [%.1f, %.1f]), %d malformed\n", correct_, items_, 100 * accuracy.value,
                   100 * accuracy.low, 100 * accuracy.high, malformed_.count());
    }
    // Else an accuracy that is the model's own would look like one of a method that does nothing.
    if (!left_alone_.empty()) {
      uint64_t sum = 0;
      for (const auto& [gate, count] : left_alone_) sum += count;
      absl::FPrintF(stderr, "%d of %d samples got the model's own answer, as the gate decided: %s\n", sum, items_,
                    LeftAlone([](const auto& gate) {
                      return absl::StrCat(absl::StrReplaceAll(gate.first, {{"_", " "}}), " ", gate.second);
                    }));
    }
    if (known_ > 0) {
      absl::FPrintF(stderr, "%d samples are among the references of %s and were left out (--include-references)\n",
                    known_, collection_);
    }
    if (asked_though_known_ > 0) {
      absl::FPrintF(stderr,
                    "%d samples are among the references of %s: what is gained on them says nothing of new ones\n",
                    asked_though_known_, collection_);
    }
  }

  // The decisions of the gate that left samples alone, each as `format` writes it, with commas between.
  template <typename Format>
  std::string LeftAlone(Format format) const {
    return absl::StrJoin(left_alone_, ", ",
                         [&](std::string* out, const auto& gate) { absl::StrAppend(out, format(gate)); });
  }

  Session& session_;
  const ScoreFlags& flags_;
  const std::string collection_;
  const uint64_t lines_;
  ProgressLine progress_;
  MalformedLines malformed_;
  uint64_t items_ = 0, correct_ = 0, failed_ = 0, known_ = 0, asked_though_known_ = 0, warned_ = 0;
  std::map<std::string, uint64_t> left_alone_;  // How often the gate decided so, other than to apply a pathway.
};

absl::Status ScoreFile(Session& session, const ScoreFlags& flags) { return FileScoring(session, flags).Run(); }

}  // namespace

void AddScoreCommand(CLI::App& app, Session* session) {
  CLI::App* command =
      app.add_subcommand("score", "Log-likelihoods of continuations, or accuracy over a file of samples");
  const auto flags = std::make_shared<ScoreFlags>();
  CLI::Option* prompt = command->add_option("prompt", flags->prompt, "The prompt");
  command->add_option("--continuation", flags->continuations, "A continuation; may be given several times")
      ->allow_extra_args(false);
  command
      ->add_option("--choices", flags->choices,
                   "Continuations to choose from; marks the likeliest per token, with --offset the best by it")
      ->excludes("--continuation");
  command->add_option("--file", flags->path, "JSONL of {\"prompt\", \"answer\", optional \"choices\"}; - is stdin")
      ->check(SampleFile::IsReadable())
      ->excludes(prompt)
      ->excludes("--continuation")
      ->excludes("--choices");
  AddChatFlags(*command, &flags->chat);
  command->add_option("--experts-per-token", flags->experts_per_token,
                      "Experts that the router gives each token, in place of the model's own number");
  command->add_option("--limit", flags->limit, "Score at most this many samples of the file; 0: all");
  command->add_flag("--include-references", flags->include_references,
                    "Of a file: score samples that are among the collection's references, too");
  command->add_flag("--strict", flags->strict, "Fail when any line of the file was malformed");
  command->add_flag("--json", flags->json, "Print JSON: the response, or a line per sample and a summary");
  command->add_flag("--explain", flags->explain, "Show what C3PO did, and the time of each stage");
  AddOptimizationFlags(*command, &flags->optimization);
  command->callback([session, flags] {
    if (flags->path.empty() && (!flags->prompt || (flags->continuations.empty() && flags->choices.empty()))) {
      throw CLI::RequiredError("a prompt with --continuation or --choices, or --file,");
    }
    session->command = [flags](Session& chosen) {
      return flags->path.empty() ? ScoreOne(chosen, *flags) : ScoreFile(chosen, *flags);
    };
  });
}

}  // namespace c3po
