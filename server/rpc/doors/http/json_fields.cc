#include "server/rpc/doors/http/json_fields.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/json_nesting.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/json_slices.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

absl::Status Refuse(absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

// Of a text that was accepted as a part of JSON. Nothing: it is not a text.
bool Unquote(absl::string_view value, std::string& out) {
  if (KindOf(value) != JsonKind::kText) return false;
  const Json text = Json::parse(value.begin(), value.end(), nullptr, /*allow_exceptions=*/false);
  if (!text.is_string()) return false;
  out = text.get<std::string>();
  return true;
}

// What leaving the field out means.
bool IsNeutral(absl::string_view value) {
  double number = 1;
  switch (KindOf(value)) {
    case JsonKind::kNull:
      return true;
    case JsonKind::kBool:
      return value == "false";
    case JsonKind::kNumber:
      return absl::SimpleAtod(value, &number) && number == 0;
    case JsonKind::kText:
      return value == "\"\"";
    case JsonKind::kList: {
      bool empty = true;
      VisitElements(value, [&](absl::string_view) { return empty = false; });
      return empty;
    }
    case JsonKind::kObject: {
      bool empty = true;
      VisitMembers(value, [&](absl::string_view, absl::string_view) { return empty = false; });
      return empty;
    }
  }
  return false;
}

}  // namespace

JsonKind KindOf(absl::string_view value) {
  switch (value.empty() ? 'n' : value.front()) {
    case 'n':
      return JsonKind::kNull;
    case 't':
    case 'f':
      return JsonKind::kBool;
    case '"':
      return JsonKind::kText;
    case '[':
      return JsonKind::kList;
    case '{':
      return JsonKind::kObject;
    default:
      return JsonKind::kNumber;
  }
}

absl::StatusOr<JsonFields> JsonFields::Parse(absl::string_view text, std::string path) {
  const absl::string_view whole = absl::string_view(path).substr(0, path.empty() ? 0 : path.size() - 1);
  const absl::string_view name = path.empty() ? "request" : whole;
  if (NestsDeeperThan(text, kJsonLevelsMax))
    return Refuse(name, absl::StrCat("nests deeper than ", kJsonLevelsMax, " levels"));
  if (!Json::accept(text.begin(), text.end())) return Refuse(name, "is no JSON");
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == absl::string_view::npos || text[first] != '{') return Refuse(name, "is no JSON object");
  JsonFields fields(std::move(path));
  bool too_many = false;
  VisitMembers(text, [&](absl::string_view key, absl::string_view value) {
    std::string member;
    if (Unquote(key, member)) fields.members_[std::move(member)] = value;
    too_many = fields.members_.size() > kMembersMax;
    return !too_many;
  });
  if (too_many) return Refuse(fields.path_.empty() ? "request" : fields.path_, "has too many members");
  return fields;
}

std::string JsonFields::PathOf(absl::string_view name) const { return absl::StrCat(path_, name); }

absl::string_view JsonFields::Find(absl::string_view name) const {
  const auto found = members_.find(name);
  return found == members_.end() || found->second == "null" ? absl::string_view() : found->second;
}

absl::Status JsonFields::Read(absl::string_view name, bool& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  if (KindOf(value) != JsonKind::kBool) return Refuse(PathOf(name), "must be true or false");
  out = value == "true";
  return absl::OkStatus();
}

absl::Status JsonFields::Read(absl::string_view name, double& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(out, NumberOf(PathOf(name), value));
  return absl::OkStatus();
}

absl::Status JsonFields::Read(absl::string_view name, int64_t& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(out, WholeNumberOf(PathOf(name), value));
  return absl::OkStatus();
}

absl::Status JsonFields::Read(absl::string_view name, int& out) const {
  int64_t number = out;
  C3PO_RETURN_IF_ERROR(Read(name, number));
  if (number < std::numeric_limits<int>::min() || number > std::numeric_limits<int>::max())
    return Refuse(PathOf(name), absl::StrCat(number, " is too large"));
  out = static_cast<int>(number);
  return absl::OkStatus();
}

absl::Status JsonFields::Read(absl::string_view name, std::string& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(out, TextOf(PathOf(name), value));
  return absl::OkStatus();
}

absl::Status JsonFields::ReadTexts(absl::string_view name, std::vector<std::string>& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  out.clear();
  if (KindOf(value) != JsonKind::kList) {
    std::string text;
    if (!Unquote(value, text)) return Refuse(PathOf(name), "must be a text or a list of texts");
    out.push_back(std::move(text));
    return absl::OkStatus();
  }
  absl::Status status;
  VisitElements(value, [&](absl::string_view element) {
    auto text = TextOf(absl::StrCat(PathOf(name), "[", out.size(), "]"), element);
    status = text.status();
    if (text.ok()) out.push_back(*std::move(text));
    return status.ok();
  });
  return status;
}

absl::Status JsonFields::ReadObjects(absl::string_view name, std::vector<std::string>& out) const {
  const absl::string_view value = Find(name);
  if (value.empty()) return absl::OkStatus();
  if (KindOf(value) != JsonKind::kList) return Refuse(PathOf(name), "must be a list of objects");
  out.clear();
  absl::Status status;
  VisitElements(value, [&](absl::string_view element) {
    if (KindOf(element) != JsonKind::kObject) {
      status = Refuse(absl::StrCat(PathOf(name), "[", out.size(), "]"), "must be an object");
    }
    out.emplace_back(element);
    return status.ok();
  });
  return status;
}

absl::Status JsonFields::Check(absl::Span<const KnownField> known, std::vector<std::string>& unknown) const {
  for (const auto& [name, value] : members_) {
    const KnownField* found = nullptr;
    for (const KnownField& field : known) {
      if (field.name == name) found = &field;
    }
    if (found == nullptr) {
      unknown.push_back(PathOf(name));
    } else if (found->fate == FieldFate::kRefused && !IsNeutral(value)) {
      return Refuse(PathOf(name), "is not supported by this server");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> TextOf(absl::string_view path, absl::string_view value) {
  std::string text;
  if (!Unquote(value, text)) return Refuse(path, "must be a text");
  return text;
}

absl::StatusOr<double> NumberOf(absl::string_view path, absl::string_view value) {
  double number = 0;
  if (KindOf(value) != JsonKind::kNumber || !absl::SimpleAtod(value, &number) || !std::isfinite(number))
    return Refuse(path, "must be a number");
  return number;
}

absl::StatusOr<int64_t> WholeNumberOf(absl::string_view path, absl::string_view value) {
  int64_t whole = 0;
  if (KindOf(value) == JsonKind::kNumber && absl::SimpleAtoi(value, &whole)) return whole;
  constexpr double kExact = 9007199254740992;  // 2^53
  const auto number = NumberOf(path, value);
  if (!number.ok() || !(*number >= -kExact && *number <= kExact) || *number != std::trunc(*number))
    return Refuse(path, "must be a whole number");
  return static_cast<int64_t>(*number);
}

absl::StatusOr<std::vector<int32_t>> IdsOf(absl::string_view path, absl::string_view value) {
  if (KindOf(value) != JsonKind::kList) return Refuse(path, "must be a list of token ids");
  std::vector<int32_t> ids;
  absl::Status status;
  VisitElements(value, [&](absl::string_view element) {
    const auto id = WholeNumberOf("", element);
    if (!id.ok() || *id < 0 || *id > std::numeric_limits<int32_t>::max()) {
      status = Refuse(absl::StrCat(path, "[", ids.size(), "]"), "must be a token id");
      return false;
    }
    ids.push_back(static_cast<int32_t>(*id));
    return true;
  });
  if (!status.ok()) return status;
  return ids;
}

std::string QuotedJson(absl::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace c3po
