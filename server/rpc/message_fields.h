#ifndef C3PO_SERVER_RPC_MESSAGE_FIELDS_H_
#define C3PO_SERVER_RPC_MESSAGE_FIELDS_H_

// Single fields of messages to the pipeline's values. Each error is InvalidArgument "FIELD: ...", where `field` is the
// dotted path that the client knows. Pure and thread-safe.

#include <google/protobuf/repeated_field.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/types/optimization_terms.h"

namespace c3po {

// InvalidArgument: more than 2^31 - 1.
absl::Status ToInt(absl::string_view field, uint32_t value, int& out);

// Ascending, whatever the order in the message.
absl::Status ReadLayers(absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& layers,
                        std::vector<int>& out);

// The value of an enum's number. UNSPECIFIED (0) leaves `out` as it is; a number that has no row is InvalidArgument.
template <typename Value>
absl::Status ReadChoice(absl::string_view field, int number, Value& out) {
  if (number == 0) return absl::OkStatus();
  const Term<Value>* term = TermOfNumber<Value>(number);
  if (term == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", number, " is not a value of the enumeration"));
  out = term->value;
  return absl::OkStatus();
}

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_MESSAGE_FIELDS_H_
