#ifndef C3PO_SERVER_WEIGHTS_CHECKPOINT_H_
#define C3PO_SERVER_WEIGHTS_CHECKPOINT_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/weights/packed_tensors.h"
#include "server/weights/safetensors_file.h"

namespace c3po {

inline constexpr int64_t kConfigBytesMax = 4 << 20;  // Of config.json.

// The weights of a Hugging Face model folder: config.json and either model.safetensors or the shards that
// model.safetensors.index.json ({"weight_map": {tensor name: file name}}) lists. model.safetensors wins where both
// exist. A tensor that a shard holds and the index does not list is there as well. Memory-mapped: opening reads headers
// only. Views are valid as long as the Checkpoint. Thread-safe after Open().
class Checkpoint {
 public:
  // NotFound: the folder, config.json, the weights or a shard is missing. InvalidArgument or DataLoss: a file is
  // damaged, or the index names a tensor its shard lacks, or a file outside the folder, or two shards
  // hold one tensor. Messages name the file and the
  // tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  // Tensors that lie elsewhere, under Hugging Face's names, with what config.json would say of them. `source` keeps the
  // views' bytes. `path` is what messages call the model.
  static std::unique_ptr<Checkpoint> Of(const std::string& path, std::string config_json,
                                        std::map<std::string, TensorView, std::less<>> views,
                                        std::shared_ptr<const void> source);

  // From now on each quantized tensor, which lies in three of its parts, is shown as one: see JoinPacked, and its
  // errors. Before anybody else sees the Checkpoint.
  absl::Status Join(absl::Span<const PackedFormat> formats);

  // NotFound names the folder and the tensor.
  absl::StatusOr<TensorView> Find(absl::string_view name) const;
  // Where a tensor's bytes lie: a file, and how far from its beginning. NotFound as Find, and where it lies in none.
  struct Place {
    std::string path;
    int64_t offset = 0;
  };
  absl::StatusOr<Place> PlaceOf(absl::string_view name) const;
  bool Has(absl::string_view name) const { return views_.find(name) != views_.end(); }
  // Sorted.
  std::vector<std::string> names() const;

  // SHA-256, in lowercase hexadecimal, of
  //   "config.json <byte count>\n" <bytes>
  //   and per tensor in the order of names(): "<name>\n<dtype>[<d0>, <d1>, ...] <byte count>\n" <bytes> <scales>
  // so that it does not depend on how tensors are spread over shards. Reads every byte on the first call (about a
  // second per GB when the file is in the page cache) and keeps none of them resident; later calls return the same
  // string.
  const std::string& Digest() const;

  const std::string& folder() const { return folder_; }
  // What messages call the text below.
  const std::string& config_path() const { return config_path_; }
  // The bytes of config.json, as read by Open().
  const std::string& config_json() const { return config_json_; }

 private:
  Checkpoint(std::string folder, std::string config_path)
      : folder_(std::move(folder)), config_path_(std::move(config_path)) {}
  absl::Status OpenShards(const std::string& index_path);

  const std::string folder_, config_path_;
  std::string config_json_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::shared_ptr<const void> source_;
  std::map<std::string, TensorView, std::less<>> views_;  // Into files_ or source_.
  mutable absl::once_flag digest_once_;
  mutable std::string digest_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_CHECKPOINT_H_
