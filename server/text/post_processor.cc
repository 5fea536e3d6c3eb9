#include "server/text/post_processor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/vocabulary.h"

namespace c3po {
namespace {

constexpr int kSequenceDepthMax = 8;

// The ids that a template's special token stands for.
absl::StatusOr<std::vector<int32_t>> SpecialTokenIds(const JsonField& item, const JsonField& special_tokens) {
  C3PO_ASSIGN_OR_RETURN(const std::string name, item.StringMember("id"));
  C3PO_ASSIGN_OR_RETURN(const JsonField special_token, special_tokens.Member(name));
  C3PO_ASSIGN_OR_RETURN(const JsonField ids, special_token.Member("ids"));
  std::vector<int32_t> result;
  C3PO_RETURN_IF_ERROR(ids.ForEachElement([&](size_t, const JsonField& element) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const int64_t id, element.AsInteger(0, kTokenIdLimit - 1));
    result.push_back(static_cast<int32_t>(id));
    return absl::OkStatus();
  }));
  return result;
}

}  // namespace

absl::StatusOr<PostProcessor::Template> PostProcessor::ReadTemplate(const JsonField& json, size_t parts) {
  C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "single", "pair", "special_tokens"}));
  if (parts > 2) return json.Error(absl::StrCat("follows a template of ", parts, " items, which is not supported"));
  C3PO_ASSIGN_OR_RETURN(const JsonField items, json.Member(parts == 1 ? "single" : "pair"));
  C3PO_ASSIGN_OR_RETURN(const JsonField special_tokens, json.Member("special_tokens"));
  Template read;
  std::vector<int> uses(parts);
  C3PO_RETURN_IF_ERROR(items.ForEachElement([&](size_t, const JsonField& item) -> absl::Status {
    Item& next = read.emplace_back();
    if (const auto special = item.Find("SpecialToken"); special.has_value()) {
      C3PO_ASSIGN_OR_RETURN(next.ids, SpecialTokenIds(*special, special_tokens));
      return absl::OkStatus();
    }
    C3PO_ASSIGN_OR_RETURN(const JsonField sequence, item.Member("Sequence"));
    const absl::StatusOr<std::string> name = sequence.StringMember("id");
    if (!name.ok()) return name.status();
    const size_t part = *name == "A" ? 0 : *name == "B" ? 1 : 2;
    if (part >= parts) return sequence.Error(absl::StrCat("id \"", *name, "\" in a template for ", parts));
    next.part = static_cast<int>(part);
    ++uses[part];
    return absl::OkStatus();
  }));
  for (size_t part = 0; part < parts; ++part) {
    if (uses[part] == 1) continue;
    return items.Error(absl::StrCat("has sequence ", part == 0 ? "A " : "B ", uses[part], " times, expected once"));
  }
  return read;
}

absl::Status PostProcessor::Append(const JsonField& json, int depth, size_t* parts, std::vector<Template>* templates) {
  C3PO_ASSIGN_OR_RETURN(const std::string type, json.StringMember("type"));
  if (type == "ByteLevel") return json.ExpectOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return json.Error("sequences nest too deep");
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "processors"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField members, json.Member("processors"));
    return members.ForEachElement(
        [&](size_t, const JsonField& member) { return Append(member, depth + 1, parts, templates); });
  }
  if (type != "TemplateProcessing") return json.Error(absl::StrCat("type \"", type, "\" is not supported"));
  C3PO_ASSIGN_OR_RETURN(Template read, ReadTemplate(json, *parts));
  *parts = read.size();
  templates->push_back(std::move(read));
  return absl::OkStatus();
}

absl::StatusOr<PostProcessor> PostProcessor::FromJson(const std::optional<JsonField>& json) {
  PostProcessor post_processor;
  size_t parts = 1;
  if (json.has_value()) C3PO_RETURN_IF_ERROR(Append(*json, 0, &parts, &post_processor.templates_));
  return post_processor;
}

PostProcessor PostProcessor::Around(const std::vector<int32_t>& before, const std::vector<int32_t>& after) {
  PostProcessor post_processor;
  post_processor.templates_.push_back({{std::nullopt, before}, {0, {}}, {std::nullopt, after}});
  return post_processor;
}

PostProcessor::Surroundings PostProcessor::AroundSequence() const {
  constexpr int32_t kNoId = -1;
  const std::vector<int32_t> whole = AddSpecialTokens({kNoId});
  const auto sequence = std::find(whole.begin(), whole.end(), kNoId);
  return {{whole.begin(), sequence}, {sequence + 1, whole.end()}};
}

std::vector<int32_t> PostProcessor::AddSpecialTokens(std::vector<int32_t> ids) const {
  std::vector<std::vector<int32_t>> parts = {std::move(ids)};
  for (const Template& items : templates_) {
    std::vector<std::vector<int32_t>> next;
    next.reserve(items.size());
    for (const Item& item : items) next.push_back(item.part.has_value() ? parts[*item.part] : item.ids);
    parts = std::move(next);
  }
  std::vector<int32_t> whole;
  for (const std::vector<int32_t>& part : parts) whole.insert(whole.end(), part.begin(), part.end());
  return whole;
}

}  // namespace c3po
