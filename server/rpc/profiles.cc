#include "server/rpc/profiles.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/metrics/logging.h"
#include "server/rpc/convert.h"

namespace c3po {
namespace {

// All begin as the first does.
constexpr char kProfileName[] = "profile", kNotesName[] = "profile_notes", kBindingName[] = "profile_binding";
constexpr size_t kNotesMax = 64 << 10;

// "profile.k: ..." of "optimization.k: ...".
absl::Status InProfile(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("profile.", absl::StripPrefix(status.message(), "optimization.")));
}

// Of both digests, which hold no space.
std::string BindingText(absl::string_view model_digest, absl::string_view embedder_digest) {
  return absl::StrCat(model_digest, " ", embedder_digest);
}

}  // namespace

absl::Status Profiles::Open() {
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> collections, feed_->store().CollectionsWith(kProfileName));
  C3PO_RETURN_IF_ERROR(BindOldOnes(collections));
  C3PO_RETURN_IF_ERROR(feed_->Join(this));
  const MutexLock lock(mutex_);
  for (const auto& [collection, profile] : known_) {
    C3PO_RETURN_IF_ERROR(profile.status());
    if ((*profile)->why_ignored.empty()) continue;
    Log(LogLevel::kWarning, "profile_ignored", "", {{"collection", collection}, {"reason", (*profile)->why_ignored}});
  }
  return absl::OkStatus();
}

absl::Status Profiles::BindOldOnes(const std::vector<std::string>& collections) {
  const ReferenceStore& store = feed_->store();
  C3PO_ASSIGN_OR_RETURN(const std::vector<CollectionStats> all, store.Stats(shape_.digest, embedder_digest_));
  for (const std::string& collection : collections) {
    C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> bindings, store.Artifacts(collection, kBindingName));
    const auto stats = std::find_if(all.begin(), all.end(),
                                    [&](const CollectionStats& entry) { return entry.collection == collection; });
    const bool all_usable = stats != all.end() && stats->usable == stats->references;
    if (!bindings.empty() || !all_usable) continue;
    C3PO_RETURN_IF_ERROR(
        feed_->PutArtifacts({{collection, kBindingName, BindingText(shape_.digest, embedder_digest_)}}));
    Log(LogLevel::kInfo, "profile_bound", "", {{"collection", collection}, {"model", shape_.digest}});
  }
  return absl::OkStatus();
}

absl::Status Profiles::OnUpdate(const StoreUpdate& update) {
  std::optional<Known> all;
  if (update.from_start) {
    C3PO_ASSIGN_OR_RETURN(all, ReadAll());
  }
  const MutexLock lock(mutex_);
  if (all) known_ = *std::move(all);
  for (const Artifact& artifact : update.artifacts) Take(artifact, known_);
  Report();
  return absl::OkStatus();
}

absl::StatusOr<Profiles::Known> Profiles::ReadAll() const {
  Known known;
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> collections, feed_->store().CollectionsWith(kProfileName));
  for (const std::string& collection : collections) {
    C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, feed_->store().Artifacts(collection, kProfileName));
    for (const Artifact& artifact : artifacts) Take(artifact, known);
  }
  return known;
}

// Takes what is, or is no longer, of the three artifacts of a profile, of which that of its options comes first.
void Profiles::Take(const Artifact& artifact, Known& known) const {
  const bool is_profile = artifact.name == kProfileName;
  if (!is_profile && artifact.name != kNotesName && artifact.name != kBindingName) return;
  if (is_profile && artifact.value.empty()) {
    known.erase(artifact.collection);
    return;
  }
  const auto held = known.find(artifact.collection);
  if (held == known.end() && !is_profile) return;  // They have outlived it.
  const bool is_readable = held != known.end() && held->second.ok();
  if (!is_profile && !is_readable) return;
  auto profile = is_readable ? std::make_shared<Profile>(**held->second) : std::make_shared<Profile>();
  if (artifact.name == kNotesName) profile->notes = artifact.value;
  if (artifact.name == kBindingName) {
    const std::pair<std::string, std::string> digests = absl::StrSplit(artifact.value, absl::MaxSplits(' ', 1));
    std::tie(profile->model_digest, profile->embedder_digest) = digests;
  }
  if (is_profile && !profile->options.ParseFromString(artifact.value)) {
    const std::string& name = artifact.collection;
    known.insert_or_assign(name,
                           absl::DataLossError(absl::StrCat("collection \"", name, "\": its profile cannot be read")));
    return;
  }
  profile->why_ignored = WhyIgnored(*profile);
  known.insert_or_assign(artifact.collection, std::shared_ptr<const Profile>(std::move(profile)));
}

absl::StatusOr<OptimizationSettings> Profiles::Resolve(const v1::OptimizationOptions& options,
                                                       const CollectionAccess& access) {
  if (options.has_collection()) {
    C3PO_RETURN_IF_ERROR(access.CheckRead("optimization.collection", options.collection()));
    return ResolveReadable(options);
  }
  if (access.MayRead(defaults_.collection)) return ResolveReadable(options);
  v1::OptimizationOptions without_profile = options;
  if (!options.has_preset()) without_profile.set_use_profile(false);
  C3PO_ASSIGN_OR_RETURN(OptimizationSettings settings, ResolveReadable(without_profile));
  settings.use_prior = settings.use_offset = false;
  if (settings.method == Method::kOracle) return settings;
  settings.method = Method::kNone;
  settings.warnings.emplace_back(
      "the request names no collection, and its caller may not read the server's default one: the model answers alone");
  return settings;
}

absl::StatusOr<OptimizationSettings> Profiles::ResolveReadable(const v1::OptimizationOptions& options) {
  if (options.preset() == v1::PRESET_PAPER) {
    OptimizationSettings paper = PaperSettings(shape_);
    paper.collection = defaults_.collection;
    return Over(paper, options);
  }
  if (options.preset() != v1::PRESET_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrCat("optimization.preset: ", static_cast<int>(options.preset()),
                                                   " is not a value of the enumeration"));
  }
  if (options.has_use_profile() && !options.use_profile()) return Over(defaults_, options);
  const std::string& collection = options.has_collection() ? options.collection() : defaults_.collection;
  const absl::StatusOr<std::shared_ptr<const Profile>> found = Find(collection);
  if (!found.ok() && options.method() == v1::METHOD_NONE) {  // It needs nothing of the store.
    C3PO_ASSIGN_OR_RETURN(OptimizationSettings settings, Over(defaults_, options));
    settings.warnings.push_back(
        absl::StrCat("the profile of collection \"", collection, "\" cannot be read: ", found.status().message()));
    return settings;
  }
  C3PO_RETURN_IF_ERROR(found.status());
  const std::shared_ptr<const Profile> profile = *found;
  if (!profile) return Over(defaults_, options);
  std::string why = profile->why_ignored;
  OptimizationSettings settings;
  if (why.empty()) {
    C3PO_ASSIGN_OR_RETURN(settings, SettingsFromProto(profile->options, defaults_));
    C3PO_ASSIGN_OR_RETURN(settings, Over(settings, options));
    // The prior may have come or gone since the profile was read.
    const bool asks_for_prior = options.method() == v1::METHOD_COLLECTION_PRIOR || options.use_prior();
    const bool wants_prior = settings.method == Method::kCollectionPrior || settings.use_prior;
    if (wants_prior && !asks_for_prior) why = std::string(shifts_->Prior(collection).status().message());
  }
  if (!why.empty()) {
    C3PO_ASSIGN_OR_RETURN(settings, Over(defaults_, options));
    settings.warnings.push_back(absl::StrCat("the profile of collection \"", collection, "\" is ignored: ", why));
    return settings;
  }
  if (const absl::Status together = ValidateSettings(settings, shape_); !together.ok()) {
    return absl::Status(together.code(), absl::StrCat(together.message(), "; the profile of collection \"", collection,
                                                      "\" is part of this, and use_profile false leaves it out"));
  }
  return settings;
}

absl::StatusOr<OptimizationSettings> Profiles::Over(const OptimizationSettings& base,
                                                    const v1::OptimizationOptions& options) const {
  C3PO_ASSIGN_OR_RETURN(OptimizationSettings settings, SettingsFromProto(options, base));
  settings.collection_may_be_missing = settings.collection == defaults_.collection;
  return settings;
}

absl::StatusOr<std::shared_ptr<const Profiles::Profile>> Profiles::Find(absl::string_view collection) {
  const MutexLock lock(mutex_);
  const auto found = known_.find(collection);
  return found == known_.end() ? std::shared_ptr<const Profile>() : found->second;
}

std::string Profiles::WhyIgnored(const Profile& profile) const {
  constexpr absl::string_view kAdvice = "; calibrate the collection again, or store its profile again";
  if (profile.model_digest.empty()) {
    return absl::StrCat("it was stored by an earlier version, for a model that is not known", kAdvice);
  }
  if (profile.model_digest != shape_.digest) {
    return absl::StrCat("it was made for the model ", profile.model_digest, ", this is ", shape_.digest, kAdvice);
  }
  if (profile.embedder_digest != embedder_digest_) {
    return absl::StrCat("it was made for the embedder ", profile.embedder_digest, ", this is ", embedder_digest_,
                        kAdvice);
  }
  // The server's defaults, which fill what it does not set, may be others than when it was stored.
  const auto settings = SettingsFromProto(profile.options, defaults_);
  const absl::Status valid = settings.ok() ? ValidateSettings(*settings, shape_) : settings.status();
  return valid.ok() ? "" : absl::StrCat("with this server's defaults it is not valid: ", valid.message());
}

void Profiles::Report() {
  if (metrics_ == nullptr) return;
  const auto is_ignored = [](const auto& entry) { return entry.second.ok() && !(*entry.second)->why_ignored.empty(); };
  metrics_->SetLearnedIgnored(Metrics::Learned::kProfile, std::count_if(known_.begin(), known_.end(), is_ignored));
}

std::vector<std::string> Profiles::Collections() {
  const MutexLock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, profile] : known_) names.push_back(name);
  return names;
}

absl::Status Profiles::Set(absl::string_view collection, Profile profile) {
  const v1::OptimizationOptions& options = profile.options;
  if (options.has_collection()) return absl::InvalidArgumentError("profile.collection: must not be set");
  if (options.has_preset()) return absl::InvalidArgumentError("profile.preset: must not be set");
  if (options.has_use_profile()) return absl::InvalidArgumentError("profile.use_profile: must not be set");
  if (options.has_min_index_generation())
    return absl::InvalidArgumentError("profile.min_index_generation: must not be set");
  if (options.exclude_reference_ids_size() > 0)
    return absl::InvalidArgumentError("profile.exclude_reference_ids: must not be set");
  if (options.method() == v1::METHOD_ORACLE) return absl::InvalidArgumentError("profile.method: ORACLE is no default");
  if (profile.notes.size() > kNotesMax) return absl::InvalidArgumentError("notes: is longer than 64 KiB");
  const auto settings = SettingsFromProto(options, defaults_);
  C3PO_RETURN_IF_ERROR(InProfile(settings.status()));
  C3PO_RETURN_IF_ERROR(InProfile(ValidateSettings(*settings, shape_)));
  // A message without a field would serialize to nothing, which removes the artifact: the method is always written.
  if (!profile.options.has_method()) profile.options.set_method(v1::METHOD_UNSPECIFIED);
  {
    const MutexLock lock(mutex_);
    if (known_.size() >= kProfilesMax && known_.find(collection) == known_.end())
      return absl::ResourceExhaustedError(absl::StrCat(kProfilesMax, " profiles are stored; remove some"));
  }
  return feed_->PutArtifacts({{std::string(collection), kProfileName, profile.options.SerializeAsString()},
                              {std::string(collection), kNotesName, profile.notes},
                              {std::string(collection), kBindingName, BindingText(shape_.digest, embedder_digest_)}});
}

absl::Status Profiles::Remove(absl::string_view collection) {
  return feed_->PutArtifacts({{std::string(collection), kProfileName, ""},
                              {std::string(collection), kNotesName, ""},
                              {std::string(collection), kBindingName, ""}});
}

}  // namespace c3po
