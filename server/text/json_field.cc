#include "server/text/json_field.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/json_nesting.h"
#include "index/base/python_json.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

constexpr int64_t kJsonFileBytesMax = int64_t{256} << 20;  // The largest tokenizer.json known has some 40 MB.

}  // namespace

// A path is spelled out only when an error is made: a vocabulary has a hundred thousand fields and seldom one error.
struct JsonField::Node {
  std::shared_ptr<const nlohmann::json> document;
  std::shared_ptr<const std::string> file;
  std::shared_ptr<const Node> parent;  // Null at the root.
  const nlohmann::json* value;
  std::string key;  // Of an object's member.
  size_t index;     // Of an array's element.

  std::string Path() const {
    if (parent == nullptr) return "";
    const std::string before = parent->Path();
    if (parent->value->is_array()) return absl::StrCat(before, "[", index, "]");
    return before.empty() ? key : absl::StrCat(before, ".", key);
  }
};

JsonField::JsonField(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

absl::StatusOr<JsonField> JsonField::ReadFile(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const std::string bytes, ReadWholeFile(path, kJsonFileBytesMax));
  return Parse(bytes, path);
}

absl::StatusOr<JsonField> JsonField::Parse(const std::string& text, const std::string& name) {
  try {
    if (NestsDeeperThan(text, kJsonLevelsMax)) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": nests deeper than ", kJsonLevelsMax, " levels"));
    }
    auto node = std::make_shared<Node>();
    node->document = std::make_shared<const nlohmann::json>(nlohmann::json::parse(QuoteNonFinite(text)));
    node->file = std::make_shared<const std::string>(name);
    node->value = node->document.get();
    return JsonField(std::move(node));
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": malformed JSON: ", e.what()));
  }
}

bool JsonField::is_null() const { return node_->value->is_null(); }
bool JsonField::is_string() const { return node_->value->is_string(); }
bool JsonField::is_array() const { return node_->value->is_array(); }
bool JsonField::is_object() const { return node_->value->is_object(); }
size_t JsonField::size() const { return node_->value->size(); }

absl::Status JsonField::Error(absl::string_view message) const {
  const std::string path = node_->Path();
  return absl::InvalidArgumentError(path.empty() ? absl::StrCat(*node_->file, ": ", message)
                                                 : absl::StrCat(*node_->file, ": ", path, ": ", message));
}

absl::Status JsonField::WrongType(absl::string_view expected) const {
  return Error(absl::StrCat("is of type ", node_->value->type_name(), ", expected ", expected));
}

absl::StatusOr<std::string> JsonField::AsString() const {
  const auto* text = node_->value->get_ptr<const nlohmann::json::string_t*>();
  if (text == nullptr) return WrongType("string");
  return *text;
}

absl::StatusOr<bool> JsonField::AsBool() const {
  const auto* flag = node_->value->get_ptr<const nlohmann::json::boolean_t*>();
  if (flag == nullptr) return WrongType("boolean");
  return *flag;
}

absl::StatusOr<int64_t> JsonField::AsInteger(int64_t min, int64_t max) const {
  if (!node_->value->is_number_integer()) return WrongType("integer");
  const auto* positive = node_->value->get_ptr<const nlohmann::json::number_unsigned_t*>();
  const bool too_large = positive != nullptr && *positive > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : node_->value->get<int64_t>();
  if (too_large || number < min || number > max) {
    return Error(absl::StrCat("is ", node_->value->dump(), ", expected ", min, " to ", max));
  }
  return number;
}

absl::StatusOr<double> JsonField::AsNumber() const {
  if (!node_->value->is_number()) return WrongType("number");
  return node_->value->get<double>();
}

absl::StatusOr<char32_t> JsonField::AsCharacter() const {
  C3PO_ASSIGN_OR_RETURN(const std::string text, AsString());
  if (text.empty()) return Error("is empty, expected one character");
  size_t position = 0;
  const char32_t character = NextCodePoint(text, &position);
  if (position != text.size()) return Error(absl::StrCat("is \"", text, "\", expected one character"));
  return character;
}

std::optional<JsonField> JsonField::Find(absl::string_view key) const {
  if (!is_object()) return std::nullopt;
  const auto member = node_->value->find(std::string(key));
  if (member == node_->value->end() || member->is_null()) return std::nullopt;
  return JsonField(
      std::make_shared<Node>(Node{node_->document, node_->file, node_, &*member, std::string(key), /*index=*/0}));
}

absl::StatusOr<JsonField> JsonField::Member(absl::string_view key) const {
  if (!is_object()) return WrongType("object");
  const auto member = node_->value->find(std::string(key));
  if (member == node_->value->end()) return Error(absl::StrCat("has no field \"", key, "\""));
  return JsonField(
      std::make_shared<Node>(Node{node_->document, node_->file, node_, &*member, std::string(key), /*index=*/0}));
}

absl::StatusOr<std::string> JsonField::StringMember(absl::string_view key) const {
  C3PO_ASSIGN_OR_RETURN(const JsonField member, Member(key));
  return member.AsString();
}

absl::StatusOr<std::string> JsonField::StringMember(absl::string_view key, absl::string_view fallback) const {
  const std::optional<JsonField> member = Find(key);
  return member.has_value() ? member->AsString() : std::string(fallback);
}

absl::StatusOr<bool> JsonField::BoolMember(absl::string_view key) const {
  C3PO_ASSIGN_OR_RETURN(const JsonField member, Member(key));
  return member.AsBool();
}

absl::StatusOr<bool> JsonField::BoolMember(absl::string_view key, bool fallback) const {
  const std::optional<JsonField> member = Find(key);
  return member.has_value() ? member->AsBool() : fallback;
}

absl::Status JsonField::ForEachElement(
    const std::function<absl::Status(size_t index, const JsonField& element)>& visit) const {
  if (!is_array()) return WrongType("array");
  for (size_t i = 0; i < size(); ++i) {
    C3PO_RETURN_IF_ERROR(visit(
        i, JsonField(std::make_shared<Node>(Node{node_->document, node_->file, node_, &(*node_->value)[i], "", i}))));
  }
  return absl::OkStatus();
}

absl::Status JsonField::ForEachMember(
    const std::function<absl::Status(const std::string& key, const JsonField& value)>& visit) const {
  if (!is_object()) return WrongType("object");
  for (const auto& [key, value] : node_->value->items()) {
    C3PO_RETURN_IF_ERROR(visit(
        key, JsonField(std::make_shared<Node>(Node{node_->document, node_->file, node_, &value, key, /*index=*/0}))));
  }
  return absl::OkStatus();
}

absl::Status JsonField::ExpectOnly(std::initializer_list<absl::string_view> known) const {
  if (!is_object()) return absl::OkStatus();
  for (const auto& [key, value] : node_->value->items()) {
    if (value.is_null() || std::find(known.begin(), known.end(), key) != known.end()) continue;
    return Error(absl::StrCat("option \"", key, "\" is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace c3po
