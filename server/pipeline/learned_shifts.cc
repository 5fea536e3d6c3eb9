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

}  // namespace

absl::StatusOr<const LearnedShifts::Collection*> LearnedShifts::Read(absl::string_view collection) {
  auto found = collections_.find(collection);
  if (found != collections_.end()) return &found->second;
  C3PO_ASSIGN_OR_RETURN(std::vector<Artifact> artifacts, store_->Artifacts(collection, kPriorName));
  C3PO_ASSIGN_OR_RETURN(std::vector<Artifact> shifts, store_->Artifacts(collection, kReferencePrefix, kShiftSuffix));
  std::move(shifts.begin(), shifts.end(), std::back_inserter(artifacts));
  static const Collection* const kNothing = new Collection;
  if (artifacts.empty()) return kNothing;  // Not remembered: names that clients make up would pile up.
  Collection read;
  for (const Artifact& artifact : artifacts) C3PO_RETURN_IF_ERROR(ReadOne(collection, artifact, read));
  if (!read.foreign_shifts.empty()) {
    Log(LogLevel::kWarning, "learned_ignored", "",
        {{"collection", collection}, {"shifts", read.foreign_shifts.size()}, {"reason", "learned on another model"}});
  }
  const Collection& kept = collections_.emplace(collection, std::move(read)).first->second;
  Report();
  return &kept;
}

absl::Status LearnedShifts::ReadOne(absl::string_view collection, const Artifact& artifact, Collection& into) {
  const absl::string_view reference = ReferenceOf(artifact.name);
  if (artifact.name != kPriorName && reference.empty()) return absl::OkStatus();
  try {
    const Json json = Json::parse(artifact.value);
    if (reference.empty()) {
      auto prior = std::make_shared<CollectionPrior>(PriorFromJson(json));
      if (prior->model_digest == model_digest_) {
        into.prior = std::move(prior);
      } else if (foreign_priors_.emplace(collection, prior).second) {
        Log(LogLevel::kWarning, "learned_ignored", "",
            {{"collection", collection}, {"prior_of_model", prior->model_digest}, {"model", model_digest_}});
      }
    } else {
      auto shift = std::make_shared<ReferenceShift>(ShiftFromJson(reference, json));
      if (shift->model_digest == model_digest_) {
        into.shifts.emplace(reference, std::move(shift));
      } else {
        into.foreign_shifts.emplace(reference);
      }
    }
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(
        absl::StrCat("collection \"", collection, "\": artifact ", artifact.name, ": ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status LearnedShifts::ReadPriors() {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> collections, store_->CollectionsWith(kPriorName));
  for (const std::string& collection : collections) {
    C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, store_->Artifacts(collection, kPriorName));
    Collection read;  // Its shifts are not: that is for whoever asks for one.
    for (const Artifact& artifact : artifacts) C3PO_RETURN_IF_ERROR(ReadOne(collection, artifact, read));
  }
  Report();
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const CollectionPrior>> LearnedShifts::StoredPrior(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* read, Read(collection));
  if (read->prior) return read->prior;
  const auto foreign = foreign_priors_.find(collection);
  return foreign == foreign_priors_.end() ? std::shared_ptr<const CollectionPrior>() : foreign->second;
}

absl::StatusOr<std::shared_ptr<const CollectionPrior>> LearnedShifts::Prior(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* read, Read(collection));
  if (read->prior) return read->prior;
  return absl::NotFoundError(absl::StrCat("collection \"", collection,
                                          "\" has no prior for this model: TunePrior (c3po refs tune) makes one"));
}

absl::Status LearnedShifts::PutPrior(absl::string_view collection, CollectionPrior prior) {
  const MutexLock lock(mutex_);
  C3PO_RETURN_IF_ERROR(Read(collection).status());
  C3PO_RETURN_IF_ERROR(store_->PutArtifacts({{std::string(collection), kPriorName, PriorToText(prior)}}));
  foreign_priors_.erase(std::string(collection));
  collections_[std::string(collection)].prior = std::make_shared<CollectionPrior>(std::move(prior));
  Report();
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ReferenceShift>> LearnedShifts::Shift(absl::string_view collection,
                                                                           absl::string_view reference_id) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* read, Read(collection));
  const auto found = read->shifts.find(reference_id);
  if (found == read->shifts.end()) return std::shared_ptr<const ReferenceShift>();
  return found->second;
}

absl::Status LearnedShifts::PutShifts(absl::string_view collection, absl::Span<const ReferenceShift> shifts) {
  std::vector<Artifact> artifacts;
  for (const ReferenceShift& shift : shifts) {
    artifacts.push_back({std::string(collection), ShiftName(shift.reference_id), ShiftToText(shift)});
  }
  const MutexLock lock(mutex_);
  C3PO_RETURN_IF_ERROR(Read(collection).status());
  C3PO_RETURN_IF_ERROR(store_->PutArtifacts(artifacts));
  Collection& known = collections_[std::string(collection)];
  for (const ReferenceShift& shift : shifts) {
    known.shifts[shift.reference_id] = std::make_shared<ReferenceShift>(shift);
    known.foreign_shifts.erase(shift.reference_id);
  }
  Report();
  return absl::OkStatus();
}

absl::StatusOr<int64_t> LearnedShifts::CountShifts(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* read, Read(collection));
  return static_cast<int64_t>(read->shifts.size());
}

void LearnedShifts::Report() {
  if (metrics_ == nullptr) return;
  size_t shifts = 0;
  for (const auto& [name, collection] : collections_) shifts += collection.foreign_shifts.size();
  metrics_->SetLearnedIgnored(Metrics::Learned::kPrior, static_cast<int64_t>(foreign_priors_.size()));
  metrics_->SetLearnedIgnored(Metrics::Learned::kShift, static_cast<int64_t>(shifts));
}

absl::StatusOr<int64_t> LearnedShifts::CountForeignShifts(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* read, Read(collection));
  return static_cast<int64_t>(read->foreign_shifts.size());
}

void LearnedShifts::Forget(absl::string_view collection) {
  const MutexLock lock(mutex_);
  if (collection.empty()) {
    collections_.clear();
  } else {
    collections_.erase(std::string(collection));
    foreign_priors_.erase(std::string(collection));
  }
  Report();
}

}  // namespace c3po
