#include "index/store/artifact_row.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "index/store/row_codec.h"

namespace c3po {
namespace {

constexpr size_t kNameBytesMax = 256, kValueBytesMax = size_t{16} << 20;

}  // namespace

std::string ChecksumOf(const Artifact& artifact) {
  RowChecksum checksum;
  checksum.Add(artifact.collection);
  checksum.Add(artifact.name);
  checksum.Add(artifact.value);
  return checksum.Digest();
}

absl::Status ValidateArtifacts(absl::Span<const Artifact> artifacts) {
  for (size_t i = 0; i < artifacts.size(); ++i) {
    const Artifact& artifact = artifacts[i];
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("artifacts[", i, "].", what));
    };
    if (artifact.collection.empty()) return wrong("collection: must not be empty");
    if (artifact.name.empty() || artifact.name.size() > kNameBytesMax) return wrong("name: must have 1 to 256 bytes");
    if (artifact.value.size() > kValueBytesMax) return wrong("value: is larger than 16 MiB");
  }
  return absl::OkStatus();
}

void SortArtifacts(std::vector<Artifact>& artifacts) {
  std::sort(artifacts.begin(), artifacts.end(), [](const Artifact& a, const Artifact& b) {
    return std::tie(a.collection, a.name) < std::tie(b.collection, b.name);
  });
}

}  // namespace c3po
