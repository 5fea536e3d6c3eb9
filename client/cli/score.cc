#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/cli/request_flags.h"
#include "client/cli/sample_file.h"
#include "client/cli/terminal.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ScoreFlags {
  std::optional<std::string> prompt;
  std::vector<std::string> continuations;
  std::vector<std::string> choices;
  std::string path;
  uint64_t limit = 0;  // 0: all
  bool strict = false;
  bool json = false;
  bool explain = false;
  v1::OptimizationOptions optimization;
};

constexpr uint64_t kToldWarningsMax = 10;

double PerToken(const v1::ContinuationScore& score) {
  return score.token_count() == 0 ? score.log_likelihood() : score.log_likelihood() / score.token_count();
}

// The choice with the largest length-normalized log-likelihood; the first of equals. `scores` is not empty.
int BestChoice(const v1::ScoreResponse& response) {
  int best = 0;
  for (int i = 1; i < response.scores_size(); ++i) {
    if (PerToken(response.scores(i)) > PerToken(response.scores(best))) best = i;
  }
  return best;
}

absl::StatusOr<v1::ScoreResponse> Score(Session& session, const ScoreFlags& flags, v1::ScoreRequest request) {
  if (flags.optimization.ByteSizeLong() > 0) *request.mutable_optimization() = flags.optimization;
  C3PO_ASSIGN_OR_RETURN(v1::ScoreResponse response, session.client->Score(request, session.call_options()));
  if (response.scores_size() != request.continuations_size() || response.scores_size() == 0) {
    return absl::InternalError(
        absl::StrCat("the server scored ", response.scores_size(), " continuations of ", request.continuations_size()));
  }
  return response;
}

absl::Status ScoreOne(Session& session, const ScoreFlags& flags) {
  const bool choose = !flags.choices.empty();
  const std::vector<std::string>& texts = choose ? flags.choices : flags.continuations;
  v1::ScoreRequest request;
  request.set_prompt(*flags.prompt);
  for (const std::string& text : texts) request.add_continuations(text);
  C3PO_ASSIGN_OR_RETURN(const v1::ScoreResponse response, Score(session, flags, request));
  if (flags.json) return PrintJsonLine(response);
  if (flags.explain) absl::PrintF("%s\n", ExplainOptimization(response.optimization(), session.terminal));
  Table table("lrrrll");
  table.AddRow({"", "log-likelihood", "tokens", "per token", "greedy", "continuation"});
  const int best = choose ? BestChoice(response) : -1;
  for (int i = 0; i < response.scores_size(); ++i) {
    const v1::ContinuationScore& score = response.scores(i);
    table.AddRow({i == best ? "→" : "", absl::StrFormat("%.4f", score.log_likelihood()),
                  absl::StrCat(score.token_count()), absl::StrFormat("%.4f", PerToken(score)),
                  score.is_greedy() ? "yes" : "no", absl::StrCat("\"", Snippet(texts[i], 60), "\"")});
  }
  absl::PrintF("%s", table.Render(session.terminal));
  if (flags.explain) absl::PrintF("\n%s", ExplainTimings(response.timings(), session.terminal));
  for (const std::string& warning : response.optimization().warnings()) {
    absl::FPrintF(stderr, "warning: %s\n", WithoutControls(warning));
  }
  return absl::OkStatus();
}

// Whether the model gets a sample right: with choices the best one by length-normalized log-likelihood is the answer;
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

absl::Status ScoreFile(Session& session, const ScoreFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(SampleFile file, SampleFile::Open(flags.path));
  const uint64_t lines = SampleFile::CountLines(flags.path);
  ProgressLine progress(session.terminal, "samples", flags.limit == 0 ? lines : std::min(lines, flags.limit));
  MalformedLines malformed(flags.path);
  uint64_t items = 0;
  uint64_t correct = 0;
  uint64_t warned = 0;
  while (flags.limit == 0 || items < flags.limit) {
    C3PO_ASSIGN_OR_RETURN(const std::optional<SampleLine> line, file.Next());
    if (!line) break;
    if (!line->status.ok()) {
      progress.Clear();
      malformed.Report(line->number, std::string(line->status.message()));
      continue;
    }
    v1::ScoreRequest request;
    request.set_prompt(line->sample.prompt());
    *request.mutable_continuations() = line->sample.choices();
    if (line->sample.choices().empty()) request.add_continuations(line->sample.answer());
    const absl::StatusOr<v1::ScoreResponse> response = Score(session, flags, request);
    if (!response.ok()) {
      progress.Clear();
      return absl::Status(response.status().code(),
                          absl::StrCat(flags.path, ":", line->number, ": ", response.status().message()));
    }
    const Judgment judgment = Judge(line->sample, *response);
    ++items;
    correct += judgment.correct ? 1 : 0;
    if (flags.json) C3PO_RETURN_IF_ERROR(PrintItem(*line, judgment, *response));
    for (const std::string& warning : response->optimization().warnings()) {
      if (warned++ >= kToldWarningsMax) continue;
      progress.Clear();
      absl::FPrintF(stderr, "%s:%d: warning: %s\n", flags.path, line->number, WithoutControls(warning));
    }
    progress.Update(items, absl::StrCat(correct, " correct"));
  }
  progress.Clear();
  if (warned > kToldWarningsMax) absl::FPrintF(stderr, "and %d warnings more\n", warned - kToldWarningsMax);
  const double accuracy = items == 0 ? 0.0 : static_cast<double>(correct) / static_cast<double>(items);
  if (flags.json) {
    absl::PrintF("{\"summary\":{\"items\":%d,\"correct\":%d,\"accuracy\":%.6f,\"malformed\":%d}}\n", items, correct,
                 accuracy, malformed.count());
  } else {
    absl::PrintF("%d of %d correct (%.1f %%), %d malformed\n", correct, items, 100 * accuracy, malformed.count());
  }
  return malformed.Outcome(flags.strict);
}

}  // namespace

void AddScoreCommand(CLI::App& app, Session* session) {
  CLI::App* command =
      app.add_subcommand("score", "Log-likelihoods of continuations, or accuracy over a file of samples");
  const auto flags = std::make_shared<ScoreFlags>();
  CLI::Option* prompt = command->add_option("prompt", flags->prompt, "The prompt");
  command->add_option("--continuation", flags->continuations, "A continuation; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--choices", flags->choices, "Continuations to choose from; marks the likeliest per token")
      ->excludes("--continuation");
  command->add_option("--file", flags->path, "JSONL of {\"prompt\", \"answer\", optional \"choices\"}; - is stdin")
      ->check(SampleFile::IsReadable())
      ->excludes(prompt)
      ->excludes("--continuation")
      ->excludes("--choices");
  command->add_option("--limit", flags->limit, "Score at most this many samples of the file; 0: all");
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
