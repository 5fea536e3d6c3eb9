#include "server/pipeline/offset_tuner.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/learned_override.h"
#include "server/pipeline/request_admission.h"
#include "server/pipeline/seeded_shuffle.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr int kReadAtOnce = 500;  // records
constexpr absl::Duration kBetweenProgress = absl::Milliseconds(500);
constexpr absl::Duration kRetryWhenFull = absl::Milliseconds(20);
constexpr int kRefusedMax = 3000;  // A minute of it.

bool BeginsAtPrior(const OptimizationSettings& settings) {
  return settings.method == Method::kCollectionPrior ||
         (settings.use_prior && settings.method == Method::kNeighborhoodGradientDescent);
}

// Whether the reference is what is wrong; any other error would meet the others too.
bool IsOfReference(const absl::Status& status) { return absl::IsInvalidArgument(status) || IsNotANumber(status); }

absl::Status TooFew(const std::string& collection, size_t count, absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat("collection: \"", collection, "\" has ", count, " references ",
                                                    what, ", and an offset needs ", kOffsetReferencesMin));
}

}  // namespace

// Carries one reference's scores to the run.
class OffsetTuner::Listener final : public GenerationListener {
 public:
  Listener(std::shared_ptr<OffsetTuner> tuner, size_t reference) : tuner_(std::move(tuner)), reference_(reference) {}
  void OnOptimization(const OptimizationReport&) override {}
  void OnChunk(TextChunk) override {}
  void OnScores(std::vector<ContinuationScore> scores) override { scores_ = std::move(scores); }
  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    tuner_->Take(reference_, status, scores_, summary.cost);
  }

 private:
  const std::shared_ptr<OffsetTuner> tuner_;
  const size_t reference_;
  std::vector<ContinuationScore> scores_;
};

absl::Status OffsetTuner::Check(const OffsetRequest& request) {
  if (request.settings.method == Method::kOracle)
    return absl::InvalidArgumentError("optimization.method: ORACLE sees the answer, so no offset can follow it");
  if (request.settings.exclude_reference_ids.size() >= static_cast<size_t>(kExcludedMax))
    return absl::InvalidArgumentError(absl::StrCat("optimization.exclude_reference_ids: must be fewer than ",
                                                   kExcludedMax, ", as each reference leaves itself out besides"));
  if (request.max_references != 0 && request.max_references < kOffsetReferencesMin)
    return absl::InvalidArgumentError(
        absl::StrCat("max_references: is ", request.max_references, ", must be 0 or at least ", kOffsetReferencesMin));
  return absl::OkStatus();
}

absl::Status OffsetTuner::CheckWanted() const {
  const CallContext& context = request_.context;
  if (context.cancelled && context.cancelled->load(std::memory_order_relaxed))
    return absl::CancelledError("the client cancelled the request");
  if (SteadyNow() >= context.deadline)
    return absl::DeadlineExceededError("the deadline passed before all references were scored");
  return absl::OkStatus();
}

absl::Status OffsetTuner::FindReferences() {
  struct LabelSet {
    std::vector<std::string> labels;  // as its first reference has them
    std::vector<Labelled> references;
    size_t order = 0;
  };
  std::map<std::vector<std::string>, LabelSet> sets;  // by the sorted labels
  const std::vector<std::string>& left_out = settings_.exclude_reference_ids;
  size_t all = 0, usable = 0;
  for (std::string after;;) {
    C3PO_RETURN_IF_ERROR(CheckWanted());
    C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> page, store_.List(settings_.collection, after, kReadAtOnce));
    if (page.empty()) break;
    after = page.back().id;
    for (ReferenceRecord& record : page) {
      ++all;
      ids_by_prompt_[std::string(absl::StripAsciiWhitespace(record.sample.prompt))].push_back(record.id);
      const bool made_here =
          record.model_digest == parts_.model->shape().digest && record.embedder_digest == parts_.embedding->digest();
      if (!made_here) continue;
      ++usable;
      std::vector<std::string> labels = record.sample.choices;
      std::sort(labels.begin(), labels.end());
      const bool twice = std::adjacent_find(labels.begin(), labels.end()) != labels.end();
      const bool answered = std::binary_search(labels.begin(), labels.end(), record.sample.answer);
      const bool excluded = std::find(left_out.begin(), left_out.end(), record.id) != left_out.end();
      // What is fitted without neighbors serves requests whatever their filter.
      const bool matches = settings_.method == Method::kNone || Matches(settings_.filter, record.sample.metadata);
      if (labels.size() < 2 || twice || !answered || excluded || !matches) continue;
      LabelSet& set = sets[std::move(labels)];
      if (set.references.empty()) {
        set.labels = record.sample.choices;
        set.order = sets.size();
      }
      record.sample.metadata.clear();
      set.references.push_back({std::move(record.id), std::move(record.sample)});
    }
  }
  const std::string& name = settings_.collection;
  if (all == 0) return absl::NotFoundError(absl::StrCat("collection: \"", name, "\" does not exist"));
  if (usable == 0)
    return absl::FailedPreconditionError(
        absl::StrCat("collection: \"", name, "\" has no reference made with this model and embedder"));
  if (sets.empty())
    return absl::FailedPreconditionError(
        absl::StrCat("collection: \"", name, "\" has no reference with two choices or more",
                     settings_.filter.empty() ? "" : " that matches the filter", ", so there are no labels"));
  // Of equally many the set that comes first.
  const auto fewer = [](const auto& a, const auto& b) {
    const size_t of_a = a.second.references.size(), of_b = b.second.references.size();
    return of_a != of_b ? of_a < of_b : a.second.order > b.second.order;
  };
  LabelSet& most = std::max_element(sets.begin(), sets.end(), fewer)->second;
  labels_ = std::move(most.labels);
  references_ = std::move(most.references);
  if (references_.size() < kOffsetReferencesMin)
    return TooFew(name, references_.size(), "with the same choices at most");
  return absl::OkStatus();
}

absl::Status OffsetTuner::KeepHeldApart() {
  if (!BeginsAtPrior(settings_)) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const auto prior, parts_.shifts->Prior(settings_.collection));
  const std::set<std::string> apart(prior->validation_reference_ids.begin(), prior->validation_reference_ids.end());
  references_.erase(std::remove_if(references_.begin(), references_.end(),
                                   [&](const Labelled& reference) { return apart.count(reference.id) == 0; }),
                    references_.end());
  if (references_.size() >= kOffsetReferencesMin) return absl::OkStatus();
  return TooFew(settings_.collection, references_.size(),
                "with these choices that the prior was not fitted to (c3po refs tune --validation-fraction)");
}

absl::Status OffsetTuner::Sample() {
  const auto most = static_cast<size_t>(request_.max_references);
  if (most == 0 || references_.size() <= most) return absl::OkStatus();
  std::mt19937_64 random(request_.seed);
  SeededShuffle(random, references_);
  references_.resize(most);
  return absl::OkStatus();
}

// What all of it costs at most; what was not used is given back at the end.
absl::Status OffsetTuner::Charge() {
  if (request_.context.rates == nullptr) return absl::OkStatus();
  int64_t cost = 0;
  for (const Labelled& reference : references_) {
    C3PO_RETURN_IF_ERROR(CheckWanted());
    ReferenceRecord record;
    record.sample = reference.sample;
    const auto tokens = parts_.text->NeighborTokens(record, /*with_choices=*/true);
    if (!tokens.ok()) continue;  // Its scoring says so.
    size_t of_choices = 0;
    for (const auto& continuation : tokens->continuations) of_choices += continuation.size();
    PathwayQuery query{settings_, {}, {}, std::nullopt};
    C3PO_ASSIGN_OR_RETURN(const RequestWork work,
                          TakePlace(CallContext(), nullptr, tokens->prompt.size(), static_cast<int>(of_choices),
                                    parts_.model->shape().moe_layers, query));
    cost += work.Cost();
  }
  return request_.context.Charge(cost);
}

ScoreCall OffsetTuner::CallOf(const Labelled& reference) const {
  ScoreCall call;
  call.context = request_.context;
  call.context.request_id = reference.id;
  call.context.arrival = SteadyNow();
  call.context.priority = Priority::kLow;
  call.context.rates = nullptr;  // Charge has seen to that.
  call.input = reference.sample.prompt;
  call.continuations = reference.sample.choices;
  call.optimization = settings_;
  call.optimization.use_offset = call.optimization.return_pathways = false;
  std::vector<std::string>& excluded = call.optimization.exclude_reference_ids;
  excluded.push_back(reference.id);
  for (const std::string& same : ids_by_prompt_.at(std::string(absl::StripAsciiWhitespace(reference.sample.prompt)))) {
    if (same != reference.id && excluded.size() < static_cast<size_t>(kExcludedMax)) excluded.push_back(same);
  }
  return call;
}

int OffsetTuner::LabelOf(const std::string& text) const {
  return static_cast<int>(std::find(labels_.begin(), labels_.end(), text) - labels_.begin());
}

void OffsetTuner::Take(size_t reference, const absl::Status& status, const std::vector<ContinuationScore>& scores,
                       int64_t cost) {
  const ReferenceSample& sample = references_[reference].sample;
  absl::Status end = status;
  if (end.ok() && scores.size() != sample.choices.size()) end = absl::InternalError("a choice has no score");
  const absl::MutexLock lock(&mu_);
  --in_flight_;
  cost_ += cost;
  if (absl::IsResourceExhausted(end) && ++refused_ <= kRefusedMax) {
    pause_ = true;
    waiting_.push_front(reference);
    return;
  }
  if (end.ok()) {
    refused_ = 0;
    std::vector<double>& row = per_token_[reference];
    row.resize(labels_.size());
    for (size_t i = 0; i < scores.size(); ++i) row[LabelOf(sample.choices[i])] = scores[i].per_token();
  } else if (!IsOfReference(end)) {
    if (status_.ok()) status_ = end;
    return;
  } else if (unreadable_.ok()) {
    unreadable_ = end;
  }
  ++done_;
}

void OffsetTuner::Start(size_t reference) {
  const auto listener = std::make_shared<Listener>(shared_from_this(), reference);
  const absl::Status begun = scorer_.Score(CallOf(references_[reference]), listener);
  if (!begun.ok()) listener->OnDone(begun, CallSummary());
}

absl::Status OffsetTuner::ScoreAll(const std::function<void(const Progress&)>& on_progress) {
  const auto total = static_cast<int64_t>(references_.size());
  {
    const absl::MutexLock lock(&mu_);
    per_token_.resize(references_.size());
    for (size_t i = 0; i < references_.size(); ++i) waiting_.push_back(i);
  }
  on_progress({0, total});
  absl::Time told = SteadyNow();
  while (true) {
    std::optional<size_t> next;
    bool pause = false;
    int64_t done = 0;
    const absl::Status wanted = CheckWanted();
    {
      const absl::MutexLock lock(&mu_);
      if (status_.ok()) status_ = wanted;
      if (!status_.ok()) waiting_.clear();  // Those in flight end by themselves, and are waited for.
      const auto can_go_on = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return in_flight_ == 0 || (!waiting_.empty() && in_flight_ < kInFlight);
      };
      mu_.Await(absl::Condition(&can_go_on));  // A cancel or the deadline ends what is in flight.
      pause = std::exchange(pause_, false);
      done = done_;
      if (in_flight_ == 0 && waiting_.empty()) return status_;
      if (!waiting_.empty() && in_flight_ < kInFlight) {
        next = waiting_.front();
        waiting_.pop_front();
        ++in_flight_;
      }
    }
    if (SteadyNow() - told >= kBetweenProgress) {
      told = SteadyNow();
      on_progress({done, total});
    }
    if (pause) absl::SleepFor(kRetryWhenFull);  // Requests have filled the queue; learning can wait.
    if (next) Start(*next);
  }
}

absl::StatusOr<CollectionOffset> OffsetTuner::Fit() const {
  LabelScores scores;
  scores.labels = labels_.size();
  absl::Status unreadable;
  {
    const absl::MutexLock lock(&mu_);
    unreadable = unreadable_;
    for (size_t i = 0; i < references_.size(); ++i) {
      if (per_token_[i].empty()) continue;
      scores.scores.insert(scores.scores.end(), per_token_[i].begin(), per_token_[i].end());
      scores.gold.push_back(LabelOf(references_[i].sample.answer));
    }
  }
  if (scores.texts() < kOffsetReferencesMin)
    return TooFew(settings_.collection, scores.texts(),
                  absl::StrCat("that could be scored (", unreadable.message(), ")"));
  CollectionOffset offset;
  C3PO_ASSIGN_OR_RETURN(offset.fitted, FitLabelOffset(scores));
  offset.labels = labels_;
  offset.method = settings_.method;
  offset.settings = OffsetSettingsText(settings_);
  offset.references = static_cast<int64_t>(scores.texts());
  const LabelOffset none{1, std::vector<double>(labels_.size(), 0.0)};
  const std::vector<bool> after = RightAfterOffset(scores);
  for (size_t i = 0; i < scores.texts(); ++i) {
    offset.accuracy_before += ChooseLabel(none, scores.row(i)) == scores.gold[i] ? 1 : 0;
    offset.accuracy_after += after[i] ? 1 : 0;
  }
  offset.accuracy_before /= static_cast<double>(scores.texts());
  offset.accuracy_after /= static_cast<double>(scores.texts());
  offset.model_digest = parts_.model->shape().digest;
  if (Retrieves(settings_)) offset.embedder_digest = parts_.embedding->digest();
  offset.created_unix_seconds = absl::ToUnixSeconds(absl::Now());
  return offset;
}

absl::StatusOr<OffsetTuner::Outcome> OffsetTuner::Run(const std::function<void(const Progress&)>& on_progress) {
  settings_ = request_.settings;
  if (settings_.method != Method::kNone) {
    const absl::Status prior = ResolvePrior(*parts_.shifts, settings_);
    if (!prior.ok()) return Reworded(prior, absl::StrCat("optimization.collection: ", prior.message()));
  }
  if (request_.keep) {
    C3PO_ASSIGN_OR_RETURN(auto known, parts_.offsets->FittedAfter(settings_));
    if (known) return Outcome{std::move(known), /*stored=*/false};
  }
  C3PO_RETURN_IF_ERROR(FindReferences());
  C3PO_RETURN_IF_ERROR(KeepHeldApart());
  C3PO_RETURN_IF_ERROR(Sample());
  C3PO_RETURN_IF_ERROR(Charge());
  const absl::Status scored = ScoreAll(on_progress);
  {
    const absl::MutexLock lock(&mu_);
    request_.context.Used(cost_);
  }
  C3PO_RETURN_IF_ERROR(scored);
  C3PO_ASSIGN_OR_RETURN(CollectionOffset offset, Fit());
  C3PO_RETURN_IF_ERROR(CheckWanted());
  C3PO_ASSIGN_OR_RETURN(const std::vector<ReferenceRecord> left, store_.List(settings_.collection, "", 1));
  if (left.empty())
    return absl::NotFoundError(absl::StrCat("collection: \"", settings_.collection, "\" was deleted meanwhile"));
  on_progress({static_cast<int64_t>(references_.size()), static_cast<int64_t>(references_.size())});
  auto outcome = std::make_shared<const CollectionOffset>(offset);
  C3PO_RETURN_IF_ERROR(parts_.offsets->Put(settings_.collection, std::move(offset)));
  return Outcome{std::move(outcome), /*stored=*/true};
}

}  // namespace c3po
