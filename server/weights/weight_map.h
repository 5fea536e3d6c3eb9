#ifndef C3PO_SERVER_WEIGHTS_WEIGHT_MAP_H_
#define C3PO_SERVER_WEIGHTS_WEIGHT_MAP_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace c3po {

// Which shard holds a tensor: file name by tensor name, as model.safetensors.index.json lists them
// ({"weight_map": {tensor name: file name}}). A file name ends in .safetensors and has no "/".
using WeightMap = std::map<std::string, std::string>;

// Takes memory in proportion to the map, whatever else the file holds. Errors of ReadWholeFile; InvalidArgument names
// the file and what is wrong: not JSON, no weight_map, two of them, a tensor twice, a name of no file in the folder,
// more than kSafetensorsTensorsMax tensors. Thread-safe.
absl::StatusOr<WeightMap> ReadWeightMap(const std::string& index_path);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_WEIGHT_MAP_H_
