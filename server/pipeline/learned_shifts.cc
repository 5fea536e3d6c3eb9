#include "server/pipeline/learned_shifts.h"

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr char kPriorName[] = "prior";
constexpr char kReferencePrefix[] = "reference/";
constexpr char kShiftSuffix[] = "/shift";

std::string ShiftName(absl::string_view reference_id) {
  return absl::StrCat(kReferencePrefix, reference_id, kShiftSuffix);
}

Json RoutingToJson(const RoutingOverride& routing) {
  return {{"layers", routing.layers}, {"experts", routing.values.experts}, {"shift", routing.values.weights}};
}

// Throws nlohmann's exceptions.
RoutingOverride RoutingFromJson(const Json& json) {
  RoutingOverride routing;
  routing.kind = RoutingOverride::Kind::kLogitShift;
  json.at("layers").get_to(routing.layers);
  routing.values = Pathway(static_cast<int>(routing.layers.size()), json.at("experts").get<int>());
  const size_t expected = routing.values.weights.size();
  json.at("shift").get_to(routing.values.weights);
  if (routing.values.weights.size() != expected) throw Json::other_error::create(500, "shift of another shape", &json);
  return routing;
}

std::string PriorToText(const CollectionPrior& prior) {
  Json json = {{"routing", RoutingToJson(prior.routing)},
               {"prompt_positions", prior.prompt_positions},
               {"model_digest", prior.model_digest},
               {"references", prior.references},
               {"validation_references", prior.validation_references},
               {"validation_reference_ids", prior.validation_reference_ids},
               {"validation_loss_before", prior.validation_loss_before},
               {"validation_loss_after", prior.validation_loss_after}};
  if (prior.validation_accuracy_before) json["validation_accuracy_before"] = *prior.validation_accuracy_before;
  if (prior.validation_accuracy_after) json["validation_accuracy_after"] = *prior.validation_accuracy_after;
  return json.dump();
}

CollectionPrior PriorFromJson(const Json& json) {
  CollectionPrior prior;
  prior.routing = RoutingFromJson(json.at("routing"));
  prior.prompt_positions = json.value("prompt_positions", 1);
  json.at("model_digest").get_to(prior.model_digest);
  json.at("references").get_to(prior.references);
  json.at("validation_references").get_to(prior.validation_references);
  prior.validation_reference_ids = json.value("validation_reference_ids", std::vector<std::string>());
  json.at("validation_loss_before").get_to(prior.validation_loss_before);
  json.at("validation_loss_after").get_to(prior.validation_loss_after);
  const auto optional = [&json](const char* name) {
    return json.contains(name) ? std::optional<double>(json.at(name).get<double>()) : std::nullopt;
  };
  prior.validation_accuracy_before = optional("validation_accuracy_before");
  prior.validation_accuracy_after = optional("validation_accuracy_after");
  return prior;
}

std::string ShiftToText(const ReferenceShift& shift) {
  return Json{
      {"routing", RoutingToJson(shift.routing)}, {"model_digest", shift.model_digest}, {"settings", shift.settings}}
      .dump();
}

ReferenceShift ShiftFromJson(absl::string_view reference_id, const Json& json) {
  ReferenceShift shift;
  shift.reference_id = std::string(reference_id);
  shift.routing = RoutingFromJson(json.at("routing"));
  json.at("model_digest").get_to(shift.model_digest);
  json.at("settings").get_to(shift.settings);
  return shift;
}

// "ID" of "reference/ID/shift"; empty when the name is another.
absl::string_view ReferenceOf(absl::string_view name) {
  const size_t fixed = sizeof(kReferencePrefix) - 1 + sizeof(kShiftSuffix) - 1;
  if (!absl::StartsWith(name, kReferencePrefix) || !absl::EndsWith(name, kShiftSuffix) || name.size() <= fixed)
    return {};
  return name.substr(sizeof(kReferencePrefix) - 1, name.size() - fixed);
}

absl::Status Unreadable(const Artifact& artifact, absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("collection \"", artifact.collection, "\": artifact ", artifact.name, ": ", why));
}

}  // namespace

LearnedShifts::LearnedShifts(StoreFeed* feed, std::string model_digest, Metrics* metrics)
    : feed_(feed), model_digest_(std::move(model_digest)), metrics_(metrics) {
  feed_->Listen(this);
}

LearnedShifts::~LearnedShifts() { feed_->Leave(this); }

absl::Status LearnedShifts::OnUpdate(const StoreUpdate& update) {
  const MutexLock lock(mutex_);
  if (update.from_start) {
    if (priors_) {
      C3PO_ASSIGN_OR_RETURN(priors_, ReadAllPriors());
    }
    shifts_.clear();
  }
  for (const std::string& id : update.erased) {
    for (auto& [name, shifts] : shifts_) {
      shifts.own.erase(id);
      shifts.foreign.erase(id);
    }
  }
  for (const Artifact& artifact : update.artifacts) {
    if (artifact.name == kPriorName && priors_) TakePrior(artifact, *priors_);
    const auto held = shifts_.find(artifact.collection);
    if (ReferenceOf(artifact.name).empty() || held == shifts_.end()) continue;
    if (!TakeShift(artifact, held->second).ok()) shifts_.erase(held);  // Whoever asks reads it, and is told.
  }
  Report();
  return absl::OkStatus();
}

void LearnedShifts::TakePrior(const Artifact& artifact, Priors& priors) const {
  if (artifact.value.empty()) {
    priors.erase(artifact.collection);
    return;
  }
  std::shared_ptr<const CollectionPrior> prior;
  try {
    prior = std::make_shared<const CollectionPrior>(PriorFromJson(Json::parse(artifact.value)));
  } catch (const nlohmann::json::exception& error) {
    priors.insert_or_assign(artifact.collection, Unreadable(artifact, error.what()));
    return;
  }
  if (IsForeign(*prior)) {
    Log(LogLevel::kWarning, "learned_ignored", "",
        {{"collection", artifact.collection}, {"prior_of_model", prior->model_digest}, {"model", model_digest_}});
  }
  priors.insert_or_assign(artifact.collection, std::move(prior));
}

// DataLoss: its text cannot be read, and nothing was taken.
absl::Status LearnedShifts::TakeShift(const Artifact& artifact, Shifts& into) const {
  const std::string reference(ReferenceOf(artifact.name));
  std::shared_ptr<const ReferenceShift> shift;
  try {
    if (!artifact.value.empty())
      shift = std::make_shared<const ReferenceShift>(ShiftFromJson(reference, Json::parse(artifact.value)));
  } catch (const nlohmann::json::exception& error) {
    return Unreadable(artifact, error.what());
  }
  into.own.erase(reference);
  into.foreign.erase(reference);
  if (shift == nullptr) return absl::OkStatus();
  if (shift->model_digest == model_digest_) {
    into.own.emplace(reference, std::move(shift));
  } else {
    into.foreign.insert(reference);
  }
  return absl::OkStatus();
}

absl::StatusOr<LearnedShifts::Priors> LearnedShifts::ReadAllPriors() const {
  Priors priors;
  const ReferenceStore& store = feed_->store();
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> collections, store.CollectionsWith(kPriorName));
  for (const std::string& collection : collections) {
    C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, store.Artifacts(collection, kPriorName));
    for (const Artifact& artifact : artifacts) {
      if (artifact.name == kPriorName) TakePrior(artifact, priors);
    }
  }
  return priors;
}

absl::Status LearnedShifts::EnsurePriors() {
  if (priors_) return absl::OkStatus();
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(priors_, ReadAllPriors());
  Report();
  return absl::OkStatus();
}

absl::Status LearnedShifts::ReadPriors() {
  const MutexLock lock(mutex_);
  C3PO_RETURN_IF_ERROR(EnsurePriors());
  for (const auto& [name, prior] : *priors_) C3PO_RETURN_IF_ERROR(prior.status());
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const CollectionPrior>> LearnedShifts::AnyPrior(absl::string_view collection) {
  C3PO_RETURN_IF_ERROR(EnsurePriors());
  const auto found = priors_->find(collection);
  return found == priors_->end() ? std::shared_ptr<const CollectionPrior>() : found->second;
}

absl::StatusOr<std::shared_ptr<const CollectionPrior>> LearnedShifts::StoredPrior(absl::string_view collection) {
  const MutexLock lock(mutex_);
  return AnyPrior(collection);
}

absl::StatusOr<std::shared_ptr<const CollectionPrior>> LearnedShifts::Prior(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<const CollectionPrior> prior, AnyPrior(collection));
  if (prior != nullptr && !IsForeign(*prior)) return prior;
  return absl::NotFoundError(absl::StrCat("collection \"", collection,
                                          "\" has no prior for this model: TunePrior (c3po refs tune) makes one"));
}

absl::Status LearnedShifts::PutPrior(absl::string_view collection, CollectionPrior prior) {
  return feed_->PutArtifacts({{std::string(collection), kPriorName, PriorToText(prior)}});
}

absl::StatusOr<const LearnedShifts::Shifts*> LearnedShifts::Read(absl::string_view collection) {
  if (const auto found = shifts_.find(collection); found != shifts_.end()) return &found->second;
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts,
                        feed_->store().Artifacts(collection, kReferencePrefix, kShiftSuffix));
  static const Shifts* const kNothing = new Shifts;
  if (artifacts.empty()) return kNothing;  // Not remembered: names that clients make up would pile up.
  Shifts read;
  for (const Artifact& artifact : artifacts) {
    if (!ReferenceOf(artifact.name).empty()) C3PO_RETURN_IF_ERROR(TakeShift(artifact, read));
  }
  if (!read.foreign.empty()) {
    Log(LogLevel::kWarning, "learned_ignored", "",
        {{"collection", collection}, {"shifts", read.foreign.size()}, {"reason", "learned on another model"}});
  }
  const Shifts& kept = shifts_.emplace(collection, std::move(read)).first->second;
  Report();
  return &kept;
}

absl::StatusOr<std::shared_ptr<const ReferenceShift>> LearnedShifts::Shift(absl::string_view collection,
                                                                           absl::string_view reference_id) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Shifts* read, Read(collection));
  const auto found = read->own.find(reference_id);
  if (found == read->own.end()) return std::shared_ptr<const ReferenceShift>();
  return found->second;
}

std::shared_ptr<const ReferenceShift> LearnedShifts::HeldShift(absl::string_view collection,
                                                               absl::string_view reference_id) {
  const MutexLock lock(mutex_);
  const auto held = shifts_.find(collection);
  if (held == shifts_.end()) return nullptr;
  const auto found = held->second.own.find(reference_id);
  return found == held->second.own.end() ? nullptr : found->second;
}

absl::Status LearnedShifts::PutShifts(absl::string_view collection, absl::Span<const ReferenceShift> shifts) {
  std::vector<Artifact> artifacts;
  for (const ReferenceShift& shift : shifts) {
    artifacts.push_back({std::string(collection), ShiftName(shift.reference_id), ShiftToText(shift)});
  }
  return feed_->PutArtifacts(artifacts);
}

absl::StatusOr<int64_t> LearnedShifts::CountShifts(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Shifts* read, Read(collection));
  return static_cast<int64_t>(read->own.size());
}

void LearnedShifts::Report() {
  if (metrics_ == nullptr) return;
  size_t priors = 0, shifts = 0;
  if (priors_) {
    for (const auto& [name, prior] : *priors_) priors += prior.ok() && IsForeign(**prior) ? 1 : 0;
  }
  for (const auto& [name, each] : shifts_) shifts += each.foreign.size();
  metrics_->SetLearnedIgnored(Metrics::Learned::kPrior, static_cast<int64_t>(priors));
  metrics_->SetLearnedIgnored(Metrics::Learned::kShift, static_cast<int64_t>(shifts));
}

absl::StatusOr<int64_t> LearnedShifts::CountForeignShifts(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Shifts* read, Read(collection));
  return static_cast<int64_t>(read->foreign.size());
}

}  // namespace c3po
