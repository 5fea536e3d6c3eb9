// Hidden states of references: what neighbors by the model's own states are searched among. They are made after the
// references (pipeline/reference_state_builder.h), a layer at a time as requests ask for it, and kept twice: as
// artifacts of the store, "reference/ID/state/LAYER", which go when their reference goes or its content changes; and as
// vectors of an exact index a view, which follow `usable` at the moment of each change. A value is the model's digest,
// a space, the first digits of the prompt's SHA-256, a line feed and the numbers, little-endian float32. One of another
// model is made anew, and so is one of another prompt: a server may have computed it while another one replaced the
// reference. Values of earlier versions lack the prompt. Artifact "state_layers" lists the layers, in the order in
// which they were first asked for. What servers that share the store put and remove comes as updates (TakeStates), this
// one's own too.

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "index/search/reference_catalog.h"

namespace c3po {
namespace {

static_assert(std::endian::native == std::endian::little, "states are stored as they lie in memory");

constexpr char kPrefix[] = "reference/";
constexpr absl::string_view kInfix = "/state/";
constexpr char kLayersName[] = "state_layers";
constexpr size_t kPromptDigits = 16;

std::string SuffixOf(int layer) { return absl::StrCat(kInfix, layer); }

std::string ValueOf(absl::string_view model_digest, absl::string_view prompt, absl::Span<const float> state) {
  std::string value = absl::StrCat(model_digest, " ", Sha256::HexOf(prompt).substr(0, kPromptDigits), "\n");
  value.append(reinterpret_cast<const char*>(state.data()), state.size() * sizeof(float));
  return value;
}

// Empty: of another model, of another prompt, or of another size.
std::vector<float> StateFrom(absl::string_view value, absl::string_view model_digest, absl::string_view prompt,
                             int hidden_size) {
  if (!absl::ConsumePrefix(&value, model_digest)) return {};
  if (absl::ConsumePrefix(&value, " ") && !absl::ConsumePrefix(&value, Sha256::HexOf(prompt).substr(0, kPromptDigits)))
    return {};
  if (!absl::ConsumePrefix(&value, "\n")) return {};
  std::vector<float> state(static_cast<size_t>(hidden_size));
  if (value.size() != state.size() * sizeof(float)) return {};
  std::memcpy(state.data(), value.data(), value.size());
  return state;
}

}  // namespace

absl::Status ReferenceCatalog::CheckStateLayer(int layer) const {
  if (options_.hidden_size < 1) return absl::FailedPreconditionError("the catalog keeps no hidden states");
  if (layer >= 0 && layer <= options_.moe_layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer: ", layer, ", must be in [0, ", options_.moe_layers, "]"));
}

// The states that searches of a collection look among.
absl::StatusOr<const ReferenceCatalog::States*> ReferenceCatalog::StatesOf(const Collection& collection,
                                                                           int layer) const {
  C3PO_RETURN_IF_ERROR(CheckStateLayer(layer));
  const auto found = collection.states.find(layer);
  if (found != collection.states.end()) return &found->second;
  return absl::FailedPreconditionError(
      absl::StrCat("the states of the references at layer ", layer, " gave way to those of other layers; ask again"));
}

bool ReferenceCatalog::HasAllStates(absl::string_view name, int layer) const {
  ReaderLock lock(mutex_);
  const auto collection = collections_.find(name);
  if (collection == collections_.end() || collection->second.usable.empty()) return true;
  const auto found = collection->second.states.find(layer);
  if (found == collection->second.states.end() || !found->second.own_is_current) return false;
  return found->second.indexes[kAll]->size() + found->second.without.size() == collection->second.usable.size();
}

absl::StatusOr<std::vector<std::shared_ptr<const ReferenceRecord>>> ReferenceCatalog::WithoutState(
    absl::string_view name, int layer, size_t count) {
  C3PO_RETURN_IF_ERROR(CheckStateLayer(layer));
  MutexLock changing(change_mutex_);
  bool is_known = false;
  {
    ReaderLock lock(mutex_);
    C3PO_ASSIGN_OR_RETURN(const Collection* collection, FindSearchable(name));
    is_known = collection->states.contains(layer);
  }
  if (!is_known) C3PO_RETURN_IF_ERROR(LoadStates(std::string(name), layer));
  std::vector<RecordPtr> missing;
  ReaderLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* collection, FindSearchable(name));
  const States& states = collection->states.at(layer);
  for (const auto& [label, record] : collection->usable) {
    if (missing.size() >= count) break;
    if (!states.indexes[kAll]->Holds(label) && !states.without.contains(label)) missing.push_back(record);
  }
  return missing;
}

// What the store has of a layer, which no search has asked for since the catalog was opened. The holder of
// change_mutex_ calls it, so that entries_ stays as it is.
absl::Status ReferenceCatalog::LoadStates(const std::string& name, int layer) {
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_RETURN_IF_ERROR(MakeRoomForStates(name, layer));
  const std::string suffix = SuffixOf(layer);
  C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, store_->Artifacts(name, kPrefix, suffix));
  States states;
  for (auto& index : states.indexes) index = std::make_unique<ExactIndex>(options_.hidden_size);
  WriterLock lock(mutex_);
  for (const Artifact& artifact : artifacts) {
    absl::string_view id = artifact.name;
    absl::ConsumePrefix(&id, kPrefix);
    absl::ConsumeSuffix(&id, suffix);
    const auto entry = entries_.find(id);
    if (entry == entries_.end() || entry->second.record == nullptr || entry->second.collection != name) continue;
    const std::vector<float> state =
        StateFrom(artifact.value, options_.model_digest, entry->second.record->sample.prompt, options_.hidden_size);
    if (state.empty()) continue;
    for (ViewKind kind : kViewKinds) {
      if (IsIn(kind, *entry->second.record))
        C3PO_RETURN_IF_ERROR(states.indexes[kind]->Add(entry->second.label, state));
    }
  }
  CollectionNamed(name).states[layer] = std::move(states);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> ReferenceCatalog::StoredLayers(const std::string& name) const {
  C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> lists, store_->Artifacts(name, kLayersName));
  std::vector<int> layers;
  for (const Artifact& list : lists) {
    for (const absl::string_view part : absl::StrSplit(list.value, ',')) {
      int number = 0;
      if (absl::SimpleAtoi(part, &number)) layers.push_back(number);
    }
  }
  return layers;
}

// Notes the layer, and takes the states of the one that was first asked for the longest ago away where there would be
// more than kStateLayersMax.
absl::Status ReferenceCatalog::MakeRoomForStates(const std::string& name, int layer) {
  C3PO_ASSIGN_OR_RETURN(std::vector<int> layers, StoredLayers(name));
  if (std::find(layers.begin(), layers.end(), layer) != layers.end()) return absl::OkStatus();
  layers.push_back(layer);
  std::vector<Artifact> changes;
  while (layers.size() > kStateLayersMax) {
    C3PO_ASSIGN_OR_RETURN(std::vector<Artifact> gone, store_->Artifacts(name, kPrefix, SuffixOf(layers.front())));
    for (Artifact& artifact : gone) {
      artifact.value.clear();
      changes.push_back(std::move(artifact));
    }
    WriterLock lock(mutex_);
    CollectionNamed(name).states.erase(layers.front());
    layers.erase(layers.begin());
  }
  changes.push_back({name, kLayersName, absl::StrJoin(layers, ",")});
  return store_->PutArtifacts(changes);
}

// Those that were computed come back as an update. Of those that cannot be only this server knows.
absl::Status ReferenceCatalog::AddStates(absl::string_view name, int layer, absl::Span<const ReferenceState> states) {
  std::vector<Artifact> artifacts;
  {
    ReaderLock lock(mutex_);
    C3PO_ASSIGN_OR_RETURN(const Collection* collection, FindSearchable(name));
    C3PO_RETURN_IF_ERROR(StatesOf(*collection, layer).status());
    for (const ReferenceState& each : states) {
      if (!each.state.empty()) C3PO_RETURN_IF_ERROR(CheckVector("state", each.state, options_.hidden_size));
      const auto entry = entries_.find(each.record->id);
      if (entry == entries_.end() || entry->second.record != each.record) continue;  // It has gone, or changed.
      if (each.state.empty()) continue;
      artifacts.push_back({std::string(name), absl::StrCat(kPrefix, each.record->id, SuffixOf(layer)),
                           ValueOf(options_.model_digest, each.record->sample.prompt, each.state)});
    }
  }
  if (!artifacts.empty()) C3PO_RETURN_IF_ERROR(feed_->PutArtifacts(artifacts));
  MutexLock changing(change_mutex_);
  WriterLock lock(mutex_);
  const auto collection = collections_.find(name);
  if (collection == collections_.end()) return absl::OkStatus();
  const auto known = collection->second.states.find(layer);
  if (known == collection->second.states.end()) return absl::OkStatus();  // It gave way to other layers.
  known->second.own_is_current = false;
  for (const ReferenceState& each : states) {
    const auto entry = entries_.find(each.record->id);
    const bool is_here = entry != entries_.end() && entry->second.record == each.record;
    if (is_here && each.state.empty()) known->second.without.insert(entry->second.label);
  }
  return absl::OkStatus();
}

// Of layers that are held here; others are read when they are asked for. What cannot be read counts as missing.
void ReferenceCatalog::TakeStates(absl::Span<const Artifact> artifacts) {
  for (const Artifact& artifact : artifacts) {
    if (artifact.name == kLayersName) {
      KeepStoredLayers(artifact.collection);
      continue;
    }
    WriterLock lock(mutex_);
    const auto collection = collections_.find(artifact.collection);
    if (collection == collections_.end()) continue;
    const std::map<int, States>& held = collection->second.states;
    absl::string_view id = artifact.name;
    const size_t infix = id.rfind(kInfix);
    int layer = 0;
    if (infix == absl::string_view::npos || !absl::SimpleAtoi(id.substr(infix + kInfix.size()), &layer)) continue;
    id = id.substr(0, infix);
    const auto entry = entries_.find(absl::ConsumePrefix(&id, kPrefix) ? id : absl::string_view());
    const bool is_usable = entry != entries_.end() && entry->second.record != nullptr;
    if (!is_usable || entry->second.collection != artifact.collection || !held.contains(layer)) continue;
    TakeState(entry->second, layer, artifact.value).IgnoreError();
  }
}

// Those that another server let give way are gone from the store. The list is read now: this server may have added to
// it since the update was read. Where it cannot be read, the layers stay.
void ReferenceCatalog::KeepStoredLayers(const std::string& name) {
  const auto layers = StoredLayers(name);
  WriterLock lock(mutex_);
  const auto collection = collections_.find(name);
  if (!layers.ok() || collection == collections_.end()) return;
  std::erase_if(collection->second.states, [&](const auto& held) {
    return std::find(layers->begin(), layers->end(), held.first) == layers->end();
  });
}

absl::Status ReferenceCatalog::TakeState(const Entry& entry, int layer, absl::string_view value) {
  States& states = CollectionNamed(entry.collection).states.at(layer);
  const std::vector<float> state =
      StateFrom(value, options_.model_digest, entry.record->sample.prompt, options_.hidden_size);
  const bool is_known = states.indexes[kAll]->Holds(entry.label);
  if (is_known && states.indexes[kAll]->Vector(entry.label) == state) return absl::OkStatus();
  states.own_is_current = false;
  states.without.erase(entry.label);
  for (ViewKind kind : kViewKinds) {
    if (!IsIn(kind, *entry.record)) continue;
    if (is_known) C3PO_RETURN_IF_ERROR(states.indexes[kind]->Remove(entry.label));
    if (!state.empty()) C3PO_RETURN_IF_ERROR(states.indexes[kind]->Add(entry.label, state));
  }
  return absl::OkStatus();
}

absl::Status ReferenceCatalog::RefreshStateDistances(absl::string_view name, int layer) {
  MutexLock changing(change_mutex_);
  std::array<std::vector<float>, 2> own;
  {
    ReaderLock lock(mutex_);
    C3PO_ASSIGN_OR_RETURN(const Collection* collection, FindSearchable(name));
    C3PO_ASSIGN_OR_RETURN(const States* states, StatesOf(*collection, layer));
    for (ViewKind kind : kViewKinds) {
      std::vector<OwnDistances::Member> sample;
      for (const Labeled& each : SmallestLabels(*collection, kind, OwnDistances::kSampleMax)) {
        if (states->indexes[kind]->Holds(each.label)) sample.push_back({each.label, each.record});
      }
      for (const OwnDistances::Nearest& nearest : NearestOthers(*collection, kind, sample, layer)) {
        if (nearest.member.record != nullptr) own[kind].push_back(nearest.distance);
      }
    }
  }
  WriterLock lock(mutex_);
  States& states = CollectionNamed(std::string(name)).states.at(layer);
  states.own = std::move(own);
  states.own_is_current = true;
  return absl::OkStatus();
}

// Those of a reference that leaves `usable`.
void ReferenceCatalog::DropStates(Collection& collection, const Entry& entry) {
  for (auto& [layer, states] : collection.states) {
    states.own_is_current = false;
    states.without.erase(entry.label);
    for (ViewKind kind : kViewKinds) {
      if (states.indexes[kind]->Holds(entry.label)) states.indexes[kind]->Remove(entry.label).IgnoreError();
    }
  }
}

}  // namespace c3po
