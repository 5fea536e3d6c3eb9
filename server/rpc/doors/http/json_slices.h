#ifndef C3PO_SERVER_RPC_DOORS_HTTP_JSON_SLICES_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_JSON_SLICES_H_

// The parts of a JSON text as their author wrote them. A tree of it would sort members and respell numbers, and a chat
// template that writes a tool's schema would then write another prompt than other servers do. A tree also takes up to
// sixteen times the text's memory. Linear in time.
//
// For texts that a JSON parser has accepted; of any other the answer is incomplete or empty, and never outside the
// text.

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Calls visit(key, value) for every member of an object, in its order, until it returns false. The key has its quotes
// and escapes; the value no white space around it. A name that is there twice comes twice.
void VisitMembers(absl::string_view object,
                  absl::FunctionRef<bool(absl::string_view key, absl::string_view value)> visit);
// The same for the elements of an array.
void VisitElements(absl::string_view array, absl::FunctionRef<bool(absl::string_view value)> visit);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_JSON_SLICES_H_
