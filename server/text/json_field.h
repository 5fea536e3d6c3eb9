#ifndef C3PO_SERVER_TEXT_JSON_FIELD_H_
#define C3PO_SERVER_TEXT_JSON_FIELD_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// One value inside a JSON file that knows where it stands, so that every complaint names the file and the field:
// "tokenizer.json: model.merges[3]: is of type number, expected string". Cheap to copy; keeps its document alive.
// Immutable. All errors are InvalidArgument unless said otherwise. The JSON library is seen by json_field.cc only.
class JsonField {
 public:
  // The root of the file's document, of a regular file of at most 256 MiB. Errors name the file: NotFound,
  // PermissionDenied, or another of ReadWholeFile's.
  static absl::StatusOr<JsonField> ReadFile(const std::string& path);
  // Of a text; errors call it `name`.
  static absl::StatusOr<JsonField> Parse(const std::string& text, const std::string& name);

  bool is_null() const;
  bool is_string() const;
  bool is_array() const;
  bool is_object() const;

  absl::StatusOr<std::string> AsString() const;
  absl::StatusOr<bool> AsBool() const;
  // An integer within [min, max].
  absl::StatusOr<int64_t> AsInteger(int64_t min, int64_t max) const;
  absl::StatusOr<double> AsNumber() const;
  // The only character of a one-character string.
  absl::StatusOr<char32_t> AsCharacter() const;

  // The member `key` of an object. Missing: an error, as is a value that is no object.
  absl::StatusOr<JsonField> Member(absl::string_view key) const;
  // The same, but nullopt when the member is missing or null, or this is no object.
  std::optional<JsonField> Find(absl::string_view key) const;

  // Members by type; those with a fallback take it when the member is missing or null.
  absl::StatusOr<std::string> StringMember(absl::string_view key) const;
  absl::StatusOr<std::string> StringMember(absl::string_view key, absl::string_view fallback) const;
  absl::StatusOr<bool> BoolMember(absl::string_view key) const;
  absl::StatusOr<bool> BoolMember(absl::string_view key, bool fallback) const;

  // Calls `visit` for each element of an array or member of an object, in the file's order for arrays and by key for
  // objects; stops at the first error and returns it. A value of another type is an error.
  absl::Status ForEachElement(const std::function<absl::Status(size_t index, const JsonField& element)>& visit) const;
  absl::Status ForEachMember(
      const std::function<absl::Status(const std::string& key, const JsonField& value)>& visit) const;
  size_t size() const;

  // Refuses a member that is not null and whose key is not `known`, naming it: an option that this program does not
  // implement must not be passed over. OK for a value that is no object.
  absl::Status ExpectOnly(std::initializer_list<absl::string_view> known) const;

  // An InvalidArgument that says "file: field: message".
  absl::Status Error(absl::string_view message) const;

 private:
  struct Node;
  explicit JsonField(std::shared_ptr<const Node> node);

  absl::Status WrongType(absl::string_view expected) const;

  std::shared_ptr<const Node> node_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_JSON_FIELD_H_
