#ifndef C3PO_SERVER_RPC_DOORS_HTTP_JSON_FIELDS_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_JSON_FIELDS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// What becomes of a field that others send.
enum class FieldFate {
  kRead,      // Its reader knows it.
  kNoEffect,  // Passed over in silence: it changes no answer here.
  kRefused,   // InvalidArgument, unless its value is what leaving it out means: false, 0, "", [] or {}.
};
struct KnownField {
  absl::string_view name;
  FieldFate fate;
};

enum class JsonKind { kNull, kBool, kNumber, kText, kList, kObject };
// Of a value of a text that was parsed.
JsonKind KindOf(absl::string_view value);

// The members of a JSON object as a request has them. Errors are InvalidArgument "PATH: ...". A member that is null
// counts as left out, as it does for vLLM; of a name that is there twice the last counts. Immutable and thread-safe.
class JsonFields {
 public:
  static constexpr size_t kMembersMax = 4096;

  // `path`: of the object within the request, with a point at its end; empty: it is the request itself. `text`, which
  // outlives this, may be anything: InvalidArgument "request: ..." (or the path): it is no JSON object, deeper than
  // kJsonLevelsMax, or has too many members.
  static absl::StatusOr<JsonFields> Parse(absl::string_view text, std::string path = "");

  using Members = std::map<std::string, absl::string_view, std::less<>>;
  const Members& members() const { return members_; }  // Those that are null too.
  std::string PathOf(absl::string_view name) const;
  bool Has(absl::string_view name) const { return !Find(name).empty(); }
  // The value as its author wrote it; empty: left out.
  absl::string_view Find(absl::string_view name) const;

  // Each leaves `out` as it is where the member is left out.
  absl::Status Read(absl::string_view name, bool& out) const;
  absl::Status Read(absl::string_view name, double& out) const;
  absl::Status Read(absl::string_view name, int& out) const;
  absl::Status Read(absl::string_view name, int64_t& out) const;
  absl::Status Read(absl::string_view name, std::string& out) const;
  // One text or a list of them.
  absl::Status ReadTexts(absl::string_view name, std::vector<std::string>& out) const;
  // Objects of a list, as they are written.
  absl::Status ReadObjects(absl::string_view name, std::vector<std::string>& out) const;

  // Refuses what `known` says is refused. Names that `known` does not have are added to `unknown`, by name.
  absl::Status Check(absl::Span<const KnownField> known, std::vector<std::string>& unknown) const;

 private:
  explicit JsonFields(std::string path) : path_(std::move(path)) {}

  std::string path_;
  Members members_;
};

// Of single values of a text that was parsed. InvalidArgument "PATH: must be ...".
absl::StatusOr<std::string> TextOf(absl::string_view path, absl::string_view value);
absl::StatusOr<double> NumberOf(absl::string_view path, absl::string_view value);
// Also of 5.0, as Python's clients may write it.
absl::StatusOr<int64_t> WholeNumberOf(absl::string_view path, absl::string_view value);
// A list of token ids. InvalidArgument "PATH[2]: ...".
absl::StatusOr<std::vector<int32_t>> IdsOf(absl::string_view path, absl::string_view value);
// `text` as JSON writes it, with quotes. What is no UTF-8 in it becomes U+FFFD.
std::string QuotedJson(absl::string_view text);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_JSON_FIELDS_H_
