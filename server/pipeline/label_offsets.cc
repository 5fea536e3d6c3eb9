#include "server/pipeline/label_offsets.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/number_text.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "index/types/optimization_terms.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr char kPrefix[] = "offset/";
constexpr size_t kKeyLength = 32;  // of the digest's 64 characters

std::string NameOf(absl::string_view settings) {
  return absl::StrCat(kPrefix, Sha256::HexOf(settings).substr(0, kKeyLength));
}

std::string ValueText(bool value) { return value ? "true" : "false"; }
std::string ValueText(int value) { return absl::StrCat(value); }
std::string ValueText(double value) { return NumberText(value); }
std::string ValueText(const std::optional<double>& value) { return value ? NumberText(*value) : "none"; }
std::string ValueText(const std::string& value) { return value; }
std::string ValueText(const std::vector<int>& values) { return absl::StrJoin(values, ","); }
std::string ValueText(const std::vector<std::string>& values) { return absl::StrJoin(values, ","); }
// A long one by its digest: the text is told to clients, of up to kOffsetsMax offsets in one message.
std::string ValueText(const MetadataFilter& value) {
  constexpr size_t kTextBytesMax = 256;
  std::string text = FilterText(value);
  return text.size() <= kTextBytesMax ? text : absl::StrCat("sha256:", Sha256::HexOf(text));
}
template <typename Choice, typename = std::enable_if_t<std::is_enum_v<Choice>>>
std::string ValueText(Choice value) {
  return std::string(TermOf(value).name);
}

// Whether a request's scores may depend on the option.
bool Matters(const OptimizationOption& option) {
  const absl::string_view name = option.name;
  return !option.is_of_one_request && name != "collection" && name != "use_offset" && name != "return_pathways";
}

std::string ToText(const CollectionOffset& offset) {
  return Json{{"labels", offset.labels},
              {"scale", offset.fitted.scale},
              {"offsets", offset.fitted.offsets},
              {"method", TermOf(offset.method).name},
              {"settings", offset.settings},
              {"references", offset.references},
              {"accuracy_before", offset.accuracy_before},
              {"accuracy_after", offset.accuracy_after},
              {"model_digest", offset.model_digest},
              {"embedder_digest", offset.embedder_digest},
              {"created_unix_seconds", offset.created_unix_seconds}}
      .dump();
}

// Throws nlohmann's exceptions.
CollectionOffset FromText(const std::string& text) {
  const Json json = Json::parse(text);
  CollectionOffset offset;
  json.at("labels").get_to(offset.labels);
  json.at("scale").get_to(offset.fitted.scale);
  json.at("offsets").get_to(offset.fitted.offsets);
  const std::string method = json.at("method").get<std::string>();
  json.at("settings").get_to(offset.settings);
  json.at("references").get_to(offset.references);
  json.at("accuracy_before").get_to(offset.accuracy_before);
  json.at("accuracy_after").get_to(offset.accuracy_after);
  json.at("model_digest").get_to(offset.model_digest);
  json.at("embedder_digest").get_to(offset.embedder_digest);
  json.at("created_unix_seconds").get_to(offset.created_unix_seconds);
  bool known = false;
  for (const Term<Method>& term : TermsOf<Method>()) {
    if (term.name != method) continue;
    offset.method = term.value;
    known = true;
  }
  const bool finite =
      std::isfinite(offset.fitted.scale) && std::all_of(offset.fitted.offsets.begin(), offset.fitted.offsets.end(),
                                                        [](double each) { return std::isfinite(each); });
  const std::set<std::string> different(offset.labels.begin(), offset.labels.end());
  if (!known || !finite || different.size() != offset.labels.size() || offset.labels.size() < 2 ||
      offset.fitted.offsets.size() != offset.labels.size()) {
    throw Json::other_error::create(500, "does not fit together", &json);
  }
  return offset;
}

}  // namespace

std::string OffsetSettingsText(const OptimizationSettings& settings) {
  std::vector<std::string> parts;
  VisitOptions(settings, [&](const OptimizationOption& option, const auto& value) {
    const absl::string_view name = option.name;
    const bool read = settings.method != Method::kNone || name == "method";
    if (!read || !Matters(option) || (settings.epsilon && name == "k")) return;
    // Texts of before there were filters stay as they are.
    if (name == "filter" && settings.filter.empty()) return;
    parts.push_back(absl::StrCat(name, "=", ValueText(value)));
  });
  return absl::StrJoin(parts, " ");
}

bool LabelOffsets::IsUsable(const CollectionOffset& offset) const {
  return offset.model_digest == model_digest_ &&
         (offset.embedder_digest.empty() || offset.embedder_digest == embedder_digest_);
}

LabelOffsets::LabelOffsets(StoreFeed* feed, std::string model_digest, std::string embedder_digest, Metrics* metrics)
    : feed_(feed),
      model_digest_(std::move(model_digest)),
      embedder_digest_(std::move(embedder_digest)),
      metrics_(metrics) {
  feed_->Listen(this);
}

LabelOffsets::~LabelOffsets() { feed_->Leave(this); }

// Collections that are new here are read at once: their requests shall not ask the store whether there is an offset.
absl::Status LabelOffsets::OnUpdate(const StoreUpdate& update) {
  const MutexLock lock(mutex_);
  if (update.from_start) {
    std::vector<std::string> held;
    for (const auto& [name, offsets] : std::exchange(collections_, {})) held.push_back(name);
    for (const std::string& name : held) ReadExisting(name).IgnoreError();  // Whoever asks for it reads it then.
  }
  for (const auto& record : update.records) {
    if (collections_.find(record->collection) == collections_.end()) ReadExisting(record->collection).IgnoreError();
  }
  for (const Artifact& artifact : update.artifacts) {
    const auto held = collections_.find(artifact.collection);
    if (!absl::StartsWith(artifact.name, kPrefix) || held == collections_.end()) continue;
    if (!Take(artifact, held->second).ok()) collections_.erase(held);  // Whoever asks reads it, and is told.
  }
  Report();
  return absl::OkStatus();
}

// DataLoss: its text cannot be read, and nothing was taken.
absl::Status LabelOffsets::Take(const Artifact& artifact, Offsets& into) const {
  std::shared_ptr<const CollectionOffset> offset;
  try {
    if (!artifact.value.empty()) offset = std::make_shared<const CollectionOffset>(FromText(artifact.value));
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(
        absl::StrCat("collection \"", artifact.collection, "\": artifact ", artifact.name, ": ", error.what()));
  }
  std::erase_if(into, [&](const auto& each) { return NameOf(each.first) == artifact.name; });
  if (offset == nullptr) return absl::OkStatus();
  if (!IsUsable(*offset)) {
    Log(LogLevel::kWarning, "learned_ignored", "",
        {{"collection", artifact.collection},
         {"offset_of_model", offset->model_digest},
         {"offset_of_embedder", offset->embedder_digest},
         {"model", model_digest_},
         {"embedder", embedder_digest_}});
  }
  into.insert_or_assign(offset->settings, offset);
  return absl::OkStatus();
}

absl::StatusOr<const LabelOffsets::Offsets*> LabelOffsets::Read(absl::string_view collection) {
  if (const auto found = collections_.find(collection); found != collections_.end()) return &found->second;
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, feed_->store().Artifacts(collection, kPrefix));
  static const Offsets* const kNothing = new Offsets;
  if (artifacts.empty()) return kNothing;  // Not remembered: names that clients make up would pile up.
  Offsets read;
  for (const Artifact& artifact : artifacts) C3PO_RETURN_IF_ERROR(Take(artifact, read));
  const Offsets& kept = collections_.emplace(collection, std::move(read)).first->second;
  Report();
  return &kept;
}

absl::Status LabelOffsets::ReadExisting(absl::string_view collection) {
  C3PO_ASSIGN_OR_RETURN(const Offsets* read, Read(collection));
  if (read->empty()) collections_.try_emplace(std::string(collection));
  return absl::OkStatus();
}

absl::Status LabelOffsets::ReadAll() {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const std::vector<CollectionStats> all, feed_->store().Stats(model_digest_, embedder_digest_));
  for (const CollectionStats& stats : all) C3PO_RETURN_IF_ERROR(ReadExisting(stats.collection));
  Report();
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const CollectionOffset>> LabelOffsets::Find(absl::string_view collection,
                                                                           absl::string_view settings) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Offsets* offsets, Read(collection));
  const auto found = offsets->find(settings);
  if (found == offsets->end() || !IsUsable(*found->second)) return std::shared_ptr<const CollectionOffset>();
  return found->second;
}

absl::StatusOr<std::shared_ptr<const CollectionOffset>> LabelOffsets::FittedAfter(
    const OptimizationSettings& settings) {
  return Find(settings.collection, OffsetSettingsText(settings));
}

absl::StatusOr<std::shared_ptr<const CollectionOffset>> LabelOffsets::OfModelAlone(absl::string_view collection) {
  OptimizationSettings alone;
  alone.method = Method::kNone;
  return Find(collection, OffsetSettingsText(alone));
}

absl::StatusOr<std::vector<std::shared_ptr<const CollectionOffset>>> LabelOffsets::All(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Offsets* offsets, Read(collection));
  std::vector<std::shared_ptr<const CollectionOffset>> all;
  for (const auto& [settings, offset] : *offsets) all.push_back(offset);
  return all;
}

std::string LabelOffsets::Oldest(const Offsets& offsets) const {
  const auto rank = [this](const CollectionOffset& offset) {
    return std::make_tuple(IsUsable(offset), offset.created_unix_seconds);
  };
  const auto oldest = std::min_element(offsets.begin(), offsets.end(),
                                       [&](const auto& a, const auto& b) { return rank(*a.second) < rank(*b.second); });
  return oldest->first;
}

absl::Status LabelOffsets::Put(absl::string_view collection, CollectionOffset offset) {
  std::vector<Artifact> changes = {{std::string(collection), NameOf(offset.settings), ToText(offset)}};
  {
    const MutexLock lock(mutex_);
    C3PO_ASSIGN_OR_RETURN(const Offsets* known, Read(collection));
    if (known->size() >= kOffsetsMax && known->find(offset.settings) == known->end())
      changes.push_back({std::string(collection), NameOf(Oldest(*known)), ""});
  }
  return feed_->PutArtifacts(changes);
}

void LabelOffsets::Report() {
  if (metrics_ == nullptr) return;
  int64_t ignored = 0;
  for (const auto& [name, offsets] : collections_) {
    for (const auto& [settings, offset] : offsets) ignored += IsUsable(*offset) ? 0 : 1;
  }
  metrics_->SetLearnedIgnored(Metrics::Learned::kOffset, ignored);
}

}  // namespace c3po
