#include "client/eval/run_texts.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_split.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

// Calls take(object) for each line that is an object and has the types that `take` expects.
template <typename Take>
void ForEachObject(absl::string_view lines, Take&& take) {
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    try {
      take(json);
    } catch (const nlohmann::json::exception&) {
      continue;
    }
  }
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

QuestionText TextOf(const std::string& task, const TaskItem& item) {
  return {task, item.id, item.prompt, item.choices, item.answer};
}

std::string ToJsonLine(const QuestionText& question) {
  Json json = {{"task", question.task}, {"id", question.id}, {"prompt", question.prompt}, {"answer", question.answer}};
  if (!question.choices.empty()) json["choices"] = question.choices;
  return Dump(json);
}

std::string ToJsonLine(const ReferenceText& reference) {
  return Dump({{"id", reference.id}, {"prompt", reference.prompt}, {"answer", reference.answer}});
}

std::vector<QuestionText> ParseQuestionTexts(absl::string_view lines) {
  std::vector<QuestionText> questions;
  ForEachObject(lines, [&](const Json& json) {
    QuestionText question{json.at("task"), json.at("id"), json.at("prompt"), {}, json.at("answer")};
    if (json.contains("choices")) json.at("choices").get_to(question.choices);
    questions.push_back(std::move(question));
  });
  return questions;
}

std::vector<ReferenceText> ParseReferenceTexts(absl::string_view lines) {
  std::vector<ReferenceText> references;
  ForEachObject(lines, [&](const Json& json) {
    references.push_back({json.at("id"), json.at("prompt"), json.at("answer")});
  });
  return references;
}

}  // namespace c3po
