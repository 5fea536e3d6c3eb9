#ifndef C3PO_INDEX_BASE_STATUS_MACROS_H_
#define C3PO_INDEX_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when `expr` (absl::Status) is an error.
#define C3PO_RETURN_IF_ERROR(expr)                       \
  do {                                                   \
    if (absl::Status c3po_status_ = (expr); !c3po_status_.ok()) return c3po_status_; \
  } while (false)

#define C3PO_CONCAT_INNER_(a, b) a##b
#define C3PO_CONCAT_(a, b) C3PO_CONCAT_INNER_(a, b)

// Declares or assigns `lhs` from `expr` (absl::StatusOr<T>), or returns its error from the enclosing function.
#define C3PO_ASSIGN_OR_RETURN(lhs, expr) C3PO_ASSIGN_OR_RETURN_IMPL_(C3PO_CONCAT_(c3po_statusor_, __LINE__), lhs, expr)
#define C3PO_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = *std::move(statusor)

#endif  // C3PO_INDEX_BASE_STATUS_MACROS_H_
