#include "server/text/post_processor.h"

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

absl::Status PostProcessor::Append(const JsonField& json, int depth, std::vector<Template>* templates) {
  C3PO_ASSIGN_OR_RETURN(const std::string type, json.StringMember("type"));
  if (type == "ByteLevel") return json.ExpectOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return json.Error("sequences nest too deep");
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "processors"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField members, json.Member("processors"));
    return members.ForEachElement(
        [&](size_t, const JsonField& member) { return Append(member, depth + 1, templates); });
  }
  if (type != "TemplateProcessing") return json.Error(absl::StrCat("type \"", type, "\" is not supported"));
  C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "single", "pair", "special_tokens"}));
  C3PO_ASSIGN_OR_RETURN(const JsonField single, json.Member("single"));
  C3PO_ASSIGN_OR_RETURN(const JsonField special_tokens, json.Member("special_tokens"));
  Template items;
  int sequences = 0;
  C3PO_RETURN_IF_ERROR(single.ForEachElement([&](size_t, const JsonField& item) -> absl::Status {
    if (const auto special = item.Find("SpecialToken"); special.has_value()) {
      C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, SpecialTokenIds(*special, special_tokens));
      items.insert(items.end(), ids.begin(), ids.end());
      return absl::OkStatus();
    }
    C3PO_ASSIGN_OR_RETURN(const JsonField sequence, item.Member("Sequence"));
    C3PO_ASSIGN_OR_RETURN(const std::string name, sequence.StringMember("id"));
    if (name != "A") return sequence.Error(absl::StrCat("id \"", name, "\" in a template for one sequence"));
    items.push_back(std::nullopt);
    ++sequences;
    return absl::OkStatus();
  }));
  if (sequences != 1) return single.Error(absl::StrCat("has the sequence ", sequences, " times, expected once"));
  templates->push_back(std::move(items));
  return absl::OkStatus();
}

absl::StatusOr<PostProcessor> PostProcessor::FromJson(const std::optional<JsonField>& json) {
  PostProcessor post_processor;
  if (json.has_value()) C3PO_RETURN_IF_ERROR(Append(*json, 0, &post_processor.templates_));
  return post_processor;
}

PostProcessor PostProcessor::Around(const std::vector<int32_t>& before, const std::vector<int32_t>& after) {
  Template items(before.begin(), before.end());
  items.push_back(std::nullopt);
  items.insert(items.end(), after.begin(), after.end());
  PostProcessor post_processor;
  post_processor.templates_.push_back(std::move(items));
  return post_processor;
}

std::vector<int32_t> PostProcessor::AddSpecialTokens(std::vector<int32_t> ids) const {
  for (const Template& items : templates_) {
    std::vector<int32_t> extended;
    extended.reserve(ids.size() + items.size());
    for (const std::optional<int32_t>& item : items) {
      if (item.has_value()) {
        extended.push_back(*item);
      } else {
        extended.insert(extended.end(), ids.begin(), ids.end());
      }
    }
    ids = std::move(extended);
  }
  return ids;
}

}  // namespace c3po
