#ifndef C3PO_TESTS_BENCH_VALUE_OR_EXIT_H_
#define C3PO_TESTS_BENCH_VALUE_OR_EXIT_H_

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace c3po {

// A benchmark that cannot do its work has nothing to report: it says why and ends with status 1.
inline void OkOrExit(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

template <typename T>
T ValueOrExit(absl::StatusOr<T> value) {
  OkOrExit(value.status());
  return *std::move(value);
}

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_VALUE_OR_EXIT_H_
