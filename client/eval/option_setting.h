#ifndef C3PO_CLIENT_EVAL_OPTION_SETTING_H_
#define C3PO_CLIENT_EVAL_OPTION_SETTING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/options.pb.h"

namespace c3po {

// "25,26", "25-29" or both: "3,25-29". InvalidArgument.
absl::StatusOr<std::vector<uint32_t>> ParseLayerList(absl::string_view text);

// The reverse, "22-29" for three or more in a row.
std::string DescribeLayers(const google::protobuf::RepeatedField<uint32_t>& layers);

// Sets one field of the options by its name in the .proto, dotted for the gate's: ("gate.max_base_confidence", "0.9").
// Enums are given without their prefix in lower case ("every_new_token"), critical_layers as a list of layers, the
// filter as protobuf's JSON, other lists by commas. InvalidArgument names the field, and the enum's values.
absl::Status SetOption(absl::string_view field, absl::string_view value, v1::OptimizationOptions* options);

// The options as one line of protobuf JSON with the .proto's names; only fields that are set.
std::string OptionsJson(const v1::OptimizationOptions& options);
// InvalidArgument for text that is no JSON of such options.
absl::StatusOr<v1::OptimizationOptions> ParseOptionsJson(absl::string_view json);

// What differs from `base`, for people: "k 12 · steps 20 · gate.enabled false". Empty when nothing does.
std::string DescribeOptions(const v1::OptimizationOptions& options, const v1::OptimizationOptions& base = {});

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_OPTION_SETTING_H_
