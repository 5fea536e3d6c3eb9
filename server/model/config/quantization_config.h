#ifndef C3PO_SERVER_MODEL_CONFIG_QUANTIZATION_CONFIG_H_
#define C3PO_SERVER_MODEL_CONFIG_QUANTIZATION_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/model/config/config_fields.h"
#include "server/weights/packed_tensors.h"

namespace c3po {

// The formats that `quantization_config` of a config.json names: weights alone, of compressed-tensors, format
// pack-quantized: symmetric integers of 4 or 8 bits, strategy group, group_size 16 or a multiple of 32. Anything else
// fails `fields` by the field's name. Empty: there is no quantization_config. Which tensors are quantized, `targets`
// and `ignore`, is not read here: their parts say so, and what nobody reads is refused (CheckTensors).
std::vector<PackedFormat> ReadPackedFormats(ConfigFields& fields);

// The same of the text of a config.json. InvalidArgument, Unimplemented: names file and field.
absl::StatusOr<std::vector<PackedFormat>> PackedFormatsOf(absl::string_view text, const std::string& path);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_QUANTIZATION_CONFIG_H_
