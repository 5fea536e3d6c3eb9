#include "server/pipeline/pathway_search.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/choice_style.h"
#include "server/pipeline/confidence.h"
#include "server/pipeline/learned_override.h"
#include "server/pipeline/optimizer_choice.h"
#include "server/pipeline/request_gate.h"
#include "server/pipeline/retrieval.h"

namespace c3po {
namespace {

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(SteadyNow() - start); }

OptimizationReport ReportOf(PathwayQuery& query) {
  OptimizationReport report;
  report.settings = std::move(query.settings);
  report.timings = query.timings;
  report.shortened = query.shortened;
  report.offset_applied = query.offset_applied;
  return report;
}

}  // namespace

PathwaySearch::PathwaySearch(const SearchContext& context, PathwayQuery query, SearchReport::OnReport on_report)
    : context_(context),
      choice_tokens_(std::move(query.choice_tokens)),
      oracle_(std::move(query.oracle)),
      report_(ReportOf(query), context.metrics, std::move(on_report)),
      fit_(context.model, context.metrics) {}

absl::Status PathwaySearch::Retrieve(absl::Span<const float> embedding) {
  const absl::Time start = SteadyNow();
  C3PO_ASSIGN_OR_RETURN(Retrieval retrieval, c3po::Retrieve(*context_.catalog, settings(), embedding));
  report_.NoteRetrieval(retrieval, SecondsSince(start));
  neighborhood_ = std::move(retrieval.neighborhood);
  return absl::OkStatus();
}

absl::StatusOr<bool> PathwaySearch::Begin(const PromptCapture& capture, const Readout& next) {
  began_ = SteadyNow();
  report_.NoteStart(capture.pathway.Rows(settings().critical_layers), Confidence(next, choice_tokens_));
  if (const GateDecision decision = GateBeforeSearch(report_.so_far()); decision != GateDecision::kApplied) {
    return Skip(decision);
  }
  if (!IsLearned(settings().method)) return BeginFit();
  C3PO_ASSIGN_OR_RETURN(
      learned_, LearnedOverride(*context_.shifts, settings(), neighborhood_.fitted, report_.so_far().before.experts));
  return learned_ ? true : Skip(GateDecision::kSkippedNoNeighbors);
}

absl::StatusOr<bool> PathwaySearch::BeginFit() {
  if (oracle_) {
    fit_.TakeOracle(settings(), *oracle_);
  } else {
    C3PO_RETURN_IF_ERROR(fit_.TakeNeighbors(settings(), neighborhood_, *context_.text));
    report_.Warn(CompareStyles(*context_.text->tokenizer(), choice_tokens_, fit_.fitted_cases()));
  }
  C3PO_ASSIGN_OR_RETURN(MemoryFit memory, fit_.KeepWithin(context_.work_memory_bytes));
  memory_bytes_ = memory.bytes;
  report_.Warn(std::move(memory.warning));
  if (const int wanted = settings().neighborhoods; memory.fits && fit_.parts() < wanted && !oracle_) {
    report_.Warn(absl::StrCat("neighborhoods: ", fit_.parts(), " of ", wanted, ", as there are no more neighbors"));
  }
  return memory.fits ? true : Skip(GateDecision::kSkippedNoNeighbors);
}

std::optional<Evaluation> PathwaySearch::Ask() const { return optimizer_ ? optimizer_->Ask() : std::nullopt; }

std::vector<Evaluation> PathwaySearch::AskAll() const {
  return optimizer_ ? optimizer_->AskAll() : std::vector<Evaluation>();
}

absl::StatusOr<bool> PathwaySearch::Step(int64_t row_layers) {
  const absl::Time start = SteadyNow();
  if (learned_) return Conclude();
  C3PO_ASSIGN_OR_RETURN(const bool finished, Advance(row_layers));
  report_.AddSeconds(SecondsSince(start));
  return finished && Conclude();
}

absl::StatusOr<bool> PathwaySearch::Advance(int64_t row_layers) {
  if (optimizer_) {
    done_.NoteEvaluation(/*with_gradient=*/true);  // A step of arithmetic alone counts as one.
    return optimizer_->Tell(nullptr);
  }
  C3PO_RETURN_IF_ERROR(fit_.prepared() ? StartOptimizer() : fit_.Prepare(row_layers, done_));
  return false;
}

absl::Status PathwaySearch::StartOptimizer() {
  C3PO_RETURN_IF_ERROR(fit_.MakeObjectives());
  if (!oracle_) report_.Warn(fit_.PairWarning());
  const std::vector<VotePart> parts = fit_.fitted();
  parts_ = static_cast<int>(parts.size());
  OptimizationProblem problem;
  problem.initial = report_.so_far().before;
  problem.critical_layers = settings().critical_layers;
  problem.core_experts = settings().core_experts;
  problem.rule = settings().rule;
  problem.validation = fit_.held_out();
  if (settings().use_prior) {
    C3PO_ASSIGN_OR_RETURN(problem.initial_shift, PriorShift(*context_.shifts, settings()));
  }
  C3PO_ASSIGN_OR_RETURN(
      optimizer_, ChooseOptimizer(settings(), *context_.catalog, neighborhood_.fitted, parts, std::move(problem)));
  return absl::OkStatus();
}

absl::StatusOr<bool> PathwaySearch::Tell(const LossAndGradient& result, double seconds) {
  return TellAll({&result, 1}, seconds);
}

absl::StatusOr<bool> PathwaySearch::TellAll(absl::Span<const LossAndGradient> results, double seconds) {
  const absl::Time start = SteadyNow();
  for (const LossAndGradient& result : results) done_.NoteEvaluation(!result.gradient.weights.empty(), parts_);
  C3PO_ASSIGN_OR_RETURN(const bool finished, optimizer_->TellAll(results));
  report_.AddSeconds(seconds + SecondsSince(start));
  return finished && Conclude();
}

// True: the search is finished.
bool PathwaySearch::Conclude() {
  report_.NoteEnd(SecondsSince(began_));
  if (learned_) {
    routing_ = learned_;
    report_.NoteShift(learned_->values);
    return true;
  }
  auto found = std::make_shared<const RoutingOverride>(optimizer_->Override());
  const std::unique_ptr<PathwayOptimizer> optimizer = std::move(optimizer_);
  memory_bytes_ = 0;
  if (report_.NoteOptimizer(*optimizer) == GateDecision::kApplied) routing_ = std::move(found);
  fit_.Release();
  return true;
}

bool PathwaySearch::AcceptAnswer(double largest_probability) { return Accept(largest_probability); }

// Of one continuation nothing is chosen, so there is nothing to be sure of.
bool PathwaySearch::AcceptScores(absl::Span<const ContinuationScore> scores) {
  if (scores.size() < 2) return Accept(std::nullopt);
  std::vector<double> normalized;
  for (const ContinuationScore& score : scores) normalized.push_back(score.per_token());
  return Accept(LargestProbability(normalized));
}

bool PathwaySearch::Accept(std::optional<double> confidence) {
  const bool stays = report_.NoteTrial(confidence);
  if (!stays) routing_.reset();
  return stays;
}

// False: there is nothing to do.
bool PathwaySearch::Skip(GateDecision decision) {
  report_.Skip(decision);
  return false;
}

}  // namespace c3po
