#include "server/rpc/profiles.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/rpc/convert.h"

namespace c3po {
namespace {

constexpr char kProfileName[] = "profile", kNotesName[] = "profile_notes";
constexpr size_t kNotesMax = 64 << 10;

// "profile.k: ..." of "optimization.k: ...".
absl::Status InProfile(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("profile.", absl::StripPrefix(status.message(), "optimization.")));
}

}  // namespace

absl::StatusOr<OptimizationSettings> Profiles::Resolve(const v1::OptimizationOptions& options) {
  OptimizationSettings settings = defaults_;
  if (options.preset() == v1::PRESET_PAPER) {
    settings = PaperSettings(shape_);
    settings.collection = defaults_.collection;
  } else if (options.preset() != v1::PRESET_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrCat("optimization.preset: ", static_cast<int>(options.preset()),
                                                   " is not a value of the enumeration"));
  } else if (!options.has_use_profile() || options.use_profile()) {
    const std::string& collection = options.has_collection() ? options.collection() : defaults_.collection;
    C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Profile> profile, Find(collection));
    if (profile) {
      C3PO_ASSIGN_OR_RETURN(settings, SettingsFromProto(profile->options, settings));
    }
  }
  C3PO_ASSIGN_OR_RETURN(settings, SettingsFromProto(options, settings));
  settings.collection_may_be_missing = settings.collection == defaults_.collection;
  return settings;
}

absl::StatusOr<std::shared_ptr<const Profiles::Profile>> Profiles::Find(absl::string_view collection) {
  const MutexLock lock(mutex_);
  if (const auto found = known_.find(collection); found != known_.end()) return found->second;
  C3PO_ASSIGN_OR_RETURN(const std::vector<Artifact> artifacts, store_->Artifacts(collection, kProfileName));
  std::shared_ptr<Profile> profile;
  for (const Artifact& artifact : artifacts) {
    if (!profile) profile = std::make_shared<Profile>();
    if (artifact.name == kNotesName) profile->notes = artifact.value;
    if (artifact.name == kProfileName && !profile->options.ParseFromString(artifact.value))
      return absl::DataLossError(absl::StrCat("collection \"", collection, "\": its profile cannot be read"));
  }
  if (profile) known_.emplace(collection, profile);  // Names that clients make up would pile up.
  return std::shared_ptr<const Profile>(profile);
}

absl::Status Profiles::Set(absl::string_view collection, Profile profile) {
  const v1::OptimizationOptions& options = profile.options;
  if (options.has_collection()) return absl::InvalidArgumentError("profile.collection: must not be set");
  if (options.has_preset()) return absl::InvalidArgumentError("profile.preset: must not be set");
  if (options.has_use_profile()) return absl::InvalidArgumentError("profile.use_profile: must not be set");
  if (options.exclude_reference_ids_size() > 0)
    return absl::InvalidArgumentError("profile.exclude_reference_ids: must not be set");
  if (options.method() == v1::METHOD_ORACLE) return absl::InvalidArgumentError("profile.method: ORACLE is no default");
  if (profile.notes.size() > kNotesMax) return absl::InvalidArgumentError("notes: is longer than 64 KiB");
  const auto settings = SettingsFromProto(options, defaults_);
  C3PO_RETURN_IF_ERROR(InProfile(settings.status()));
  C3PO_RETURN_IF_ERROR(InProfile(ValidateSettings(*settings, shape_)));
  // A message without a field would serialize to nothing, which removes the artifact: the method is always written.
  if (!profile.options.has_method()) profile.options.set_method(v1::METHOD_UNSPECIFIED);
  const MutexLock lock(mutex_);
  C3PO_RETURN_IF_ERROR(
      store_->PutArtifacts({{std::string(collection), kProfileName, profile.options.SerializeAsString()},
                            {std::string(collection), kNotesName, profile.notes}}));
  known_[std::string(collection)] = std::make_shared<Profile>(std::move(profile));
  return absl::OkStatus();
}

absl::Status Profiles::Remove(absl::string_view collection) {
  const MutexLock lock(mutex_);
  C3PO_RETURN_IF_ERROR(
      store_->PutArtifacts({{std::string(collection), kProfileName, ""}, {std::string(collection), kNotesName, ""}}));
  known_.erase(std::string(collection));
  return absl::OkStatus();
}

void Profiles::Forget(absl::string_view collection) {
  const MutexLock lock(mutex_);
  known_.erase(std::string(collection));
}

}  // namespace c3po
