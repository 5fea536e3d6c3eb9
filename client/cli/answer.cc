#include "client/cli/answer.h"

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/expert_tally.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/cli/request_flags.h"
#include "client/cli/terminal.h"

namespace c3po {
namespace {

// Prints the events of one answer to stdout.
class AnswerPrinter {
 public:
  // `choices`: of the request.
  AnswerPrinter(const Terminal& terminal, const AnswerFlags& flags, std::vector<std::string> choices)
      : terminal_(terminal), flags_(flags), choices_(std::move(choices)) {}

  // False when stdout cannot be written.
  bool Print(const v1::GenerateResponse& event) {
    if (event.has_delta()) TextOf(event.delta().answer()) += event.delta().text();
    if (flags_.json) {
      status_ = PrintJsonLine(event);
      return status_.ok();
    }
    switch (event.event_case()) {
      case v1::GenerateResponse::kOptimization:
        if (flags_.explain) Write(ExplainOptimization(event.optimization(), terminal_) + "\n");
        break;
      case v1::GenerateResponse::kDelta:
        if (!several()) Write(Shown(event.delta().text()));
        experts_.Add(event.delta().routed_experts());
        break;
      case v1::GenerateResponse::kSummary:
        if (several()) WriteAll();
        EndLine();
        if (flags_.show_experts) Write("\n" + experts_.Table(terminal_));
        if (flags_.explain) {
          Write("\n" + ExplainChoices(event.summary(), choices_, terminal_) +
                ExplainSummary(event.summary(), terminal_));
        }
        break;
      case v1::GenerateResponse::kRoutedExperts:
        experts_.Add(event.routed_experts());
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        break;  // An event of a newer server.
    }
    return status_.ok();
  }

  // A line that a broken stream left open is ended, so that the error message starts its own.
  void EndLine() {
    if (!flags_.json && line_open_) Write("\n");
  }

  const absl::Status& status() const { return status_; }
  // The first answer's.
  const std::string& text() { return TextOf(0); }

 private:
  bool several() const { return flags_.sampling.n() > 1; }
  std::string& TextOf(size_t answer) {
    if (answer >= texts_.size()) texts_.resize(answer + 1);
    return texts_[answer];
  }
  std::string Shown(const std::string& text) const {
    return terminal_.stdout_is_terminal ? WithoutControls(text) : text;
  }

  // Answers that came interleaved, one below the other.
  void WriteAll() {
    for (size_t i = 0; i < texts_.size(); ++i) {
      Write(absl::StrCat(i == 0 ? "" : "\n\n", "[", i + 1, "]", Shown(texts_[i])));
    }
  }

  void Write(const std::string& text) {
    if (text.empty()) return;
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
      status_ = absl::DataLossError("stdout cannot be written");
    }
    line_open_ = text.back() != '\n';
  }

  const Terminal& terminal_;
  const AnswerFlags& flags_;
  const std::vector<std::string> choices_;
  absl::Status status_;
  std::vector<std::string> texts_;  // by answer
  ExpertTally experts_;
  bool line_open_ = false;
};

}  // namespace

void AddAnswerFlags(CLI::App& command, AnswerFlags* flags) {
  command.add_flag("--json", flags->json, "Print one JSON document per event, one per line");
  command.add_flag("--explain", flags->explain, "Show what C3PO did, and the time of each stage");
  command.add_flag("--show-experts", flags->show_experts,
                   "Show which experts the tokens were given; with --json, every one with its weight");
  command.add_option("--experts-per-token", flags->experts_per_token,
                     "Experts that the router gives each token, in place of the model's own number");
  AddSamplingFlags(command, &flags->sampling);
  AddFormFlags(command, &flags->form);
  AddOptimizationFlags(command, &flags->optimization);
}

absl::Status StreamAnswer(Session& session, const AnswerFlags& flags, v1::GenerateRequest request,
                          std::string* answer) {
  if (flags.sampling.ByteSizeLong() > 0) *request.mutable_sampling() = flags.sampling;
  if (flags.optimization.ByteSizeLong() > 0) *request.mutable_optimization() = flags.optimization;
  if (flags.show_experts) request.set_return_routed_experts(true);
  if (flags.experts_per_token) request.set_experts_per_token(*flags.experts_per_token);
  if (flags.form.form_case() != v1::StructuredOutput::FORM_NOT_SET) *request.mutable_structured_output() = flags.form;
  AnswerPrinter printer(session.terminal, flags, {request.choices().begin(), request.choices().end()});
  const absl::Status status = session.client->Generate(
      request, [&](const v1::GenerateResponse& event) { return printer.Print(event); }, session.call_options());
  printer.EndLine();
  if (answer != nullptr) *answer = printer.text();
  return printer.status().ok() ? status : printer.status();
}

}  // namespace c3po
