#include "client/eval/benchmark_format.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

absl::Status FieldError(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" ", what));
}

absl::StatusOr<Json> ParseObject(absl::string_view line) {
  Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("not JSON");
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return json;
}

// A text that is not blank.
absl::StatusOr<std::string> Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return FieldError(key, "is missing");
  if (!found->is_string()) return FieldError(key, "is not a text");
  std::string text = found->get<std::string>();
  if (absl::StripAsciiWhitespace(text).empty()) return FieldError(key, "is empty");
  return text;
}

// A text or a number as text; empty when it is absent.
std::string TextOfScalar(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return "";
  return found->is_string() ? found->get<std::string>() : found->dump();
}

// Texts of a list, at least two.
absl::StatusOr<std::vector<std::string>> Texts(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return FieldError(key, "is missing");
  if (!found->is_array() || found->size() < 2) return FieldError(key, "is not a list of at least two texts");
  std::vector<std::string> texts;
  for (const Json& element : *found) {
    if (!element.is_string()) return FieldError(key, "holds something that is not a text");
    texts.push_back(element.get<std::string>());
  }
  return texts;
}

// The index that a label gives, `first` being the number of the first choice.
absl::StatusOr<int> LabelIndex(absl::string_view field, absl::string_view label, int first, size_t choices) {
  int number = 0;
  if (label.empty()) return FieldError(field, "is missing");
  if (!absl::SimpleAtoi(label, &number) || number < first || number >= first + static_cast<int>(choices)) {
    return FieldError(field, absl::StrCat("is \"", label, "\", must be in [", first, ", ", first + choices - 1, "]"));
  }
  return number - first;
}

absl::StatusOr<TaskItem> ChoiceItem(std::string id, std::string prompt, const std::vector<std::string>& choices,
                                    int gold) {
  TaskItem item;
  item.id = std::move(id);
  item.prompt = std::move(prompt);
  for (const std::string& choice : choices) {
    const absl::string_view text = absl::StripAsciiWhitespace(choice);
    if (text.empty()) return absl::InvalidArgumentError("a choice is empty");
    item.choices.push_back(absl::StrCat(" ", text));
  }
  item.gold = gold;
  item.answer = item.choices[gold];
  return item;
}

absl::StatusOr<TaskItem> ParseSample(absl::string_view line, absl::string_view) {
  C3PO_ASSIGN_OR_RETURN(const v1::ReferenceSample sample, ParseSampleLine(line));
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  TaskItem item;
  item.id = TextOfScalar(json, "id");
  for (const char* name : {"native_id", "id"}) {
    const auto found = sample.metadata().find(name);
    if (item.id.empty() && found != sample.metadata().end()) item.id = found->second;
  }
  item.prompt = sample.prompt();
  item.answer = sample.answer();
  if (item.prompt.empty()) return FieldError("prompt", "is empty");
  if (item.answer.empty()) return FieldError("answer", "is empty");
  item.choices.assign(sample.choices().begin(), sample.choices().end());
  if (item.choices.empty()) return item;
  if (item.choices.size() < 2) return FieldError("choices", "holds one choice only");
  const auto gold = std::find(item.choices.begin(), item.choices.end(), item.answer);
  if (gold == item.choices.end()) return FieldError("answer", "is none of the choices");
  item.gold = static_cast<int>(gold - item.choices.begin());
  return item;
}

// Takes WikiHow's marks out: "[title]" ends a sentence, other brackets go, and double spaces with them.
std::string WithoutBrackets(absl::string_view text) {
  const std::string titled = absl::StrReplaceAll(absl::StripAsciiWhitespace(text), {{" [title]", ". "}});
  std::string clean;
  size_t at = 0;
  while (at < titled.size()) {
    const size_t open = titled.find('[', at);
    const size_t close = open == std::string::npos ? open : titled.find(']', open);
    if (close == std::string::npos) {
      clean += titled.substr(at);
      break;
    }
    clean += titled.substr(at, open - at);
    at = close + 1;
  }
  return absl::StrReplaceAll(clean, {{"  ", " "}});
}

absl::StatusOr<TaskItem> ParseHellaSwag(absl::string_view line, absl::string_view) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  C3PO_ASSIGN_OR_RETURN(const std::string activity, Text(json, "activity_label"));
  C3PO_ASSIGN_OR_RETURN(const std::string context, Text(json, "ctx_a"));
  C3PO_ASSIGN_OR_RETURN(std::vector<std::string> endings, Texts(json, "endings"));
  // The second half may be empty; the field writes it as a sentence.
  std::string rest = absl::AsciiStrToLower(TextOfScalar(json, "ctx_b"));
  if (!rest.empty()) rest[0] = absl::ascii_toupper(static_cast<unsigned char>(rest[0]));
  C3PO_ASSIGN_OR_RETURN(const int gold, LabelIndex("label", TextOfScalar(json, "label"), 0, endings.size()));
  for (std::string& ending : endings) ending = WithoutBrackets(ending);
  const std::string prompt = WithoutBrackets(absl::StrCat(activity, ": ", context, " ", rest));
  return ChoiceItem(TextOfScalar(json, "ind"), std::string(absl::StripTrailingAsciiWhitespace(prompt)), endings, gold);
}

absl::StatusOr<TaskItem> ParseArc(absl::string_view line, absl::string_view) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  std::string stem;
  std::vector<std::string> texts, labels;
  const auto question = json.find("question");
  if (question != json.end() && question->is_object()) {  // As published.
    C3PO_ASSIGN_OR_RETURN(stem, Text(*question, "stem"));
    const auto choices = question->find("choices");
    if (choices == question->end() || !choices->is_array()) {
      return FieldError("question.choices", "is missing or not a list");
    }
    for (const Json& choice : *choices) {
      if (!choice.is_object()) return FieldError("question.choices", "holds something that is not an object");
      C3PO_ASSIGN_OR_RETURN(texts.emplace_back(), Text(choice, "text"));
      C3PO_ASSIGN_OR_RETURN(labels.emplace_back(), Text(choice, "label"));
    }
  } else {
    C3PO_ASSIGN_OR_RETURN(stem, Text(json, "question"));
    const auto choices = json.find("choices");
    if (choices == json.end() || !choices->is_object()) return FieldError("choices", "is missing or not an object");
    C3PO_ASSIGN_OR_RETURN(texts, Texts(*choices, "text"));
    C3PO_ASSIGN_OR_RETURN(labels, Texts(*choices, "label"));
  }
  if (texts.size() < 2 || texts.size() != labels.size()) {
    return FieldError("choices", "must be at least two, each with a text and a label");
  }
  C3PO_ASSIGN_OR_RETURN(const std::string key, Text(json, "answerKey"));
  const auto gold = std::find(labels.begin(), labels.end(), key);
  if (gold == labels.end()) return FieldError("answerKey", absl::StrCat("is \"", key, "\", which is no label"));
  return ChoiceItem(TextOfScalar(json, "id"), absl::StrCat("Question: ", absl::StripAsciiWhitespace(stem), "\nAnswer:"),
                    texts, static_cast<int>(gold - labels.begin()));
}

absl::StatusOr<TaskItem> ParsePiqa(absl::string_view line, absl::string_view label) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  C3PO_ASSIGN_OR_RETURN(const std::string goal, Text(json, "goal"));
  C3PO_ASSIGN_OR_RETURN(const std::string first, Text(json, "sol1"));
  C3PO_ASSIGN_OR_RETURN(const std::string second, Text(json, "sol2"));
  const std::string own_label = TextOfScalar(json, "label");
  if (own_label.empty() && label.empty()) return FieldError("label", "is missing: give the labels file (--labels)");
  C3PO_ASSIGN_OR_RETURN(const int gold,
                        LabelIndex("label", label.empty() ? own_label : absl::StripAsciiWhitespace(label), 0, 2));
  return ChoiceItem(TextOfScalar(json, "id"), absl::StrCat("Question: ", absl::StripAsciiWhitespace(goal), "\nAnswer:"),
                    {first, second}, gold);
}

absl::StatusOr<TaskItem> ParseMmlu(absl::string_view line, absl::string_view) {
  constexpr size_t kLetters = 26;
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  C3PO_ASSIGN_OR_RETURN(const std::string question, Text(json, "question"));
  C3PO_ASSIGN_OR_RETURN(const std::string subject, Text(json, "subject"));
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> texts, Texts(json, "choices"));
  if (texts.size() > kLetters) return FieldError("choices", absl::StrCat("holds more than ", kLetters));
  std::string answer = TextOfScalar(json, "answer");
  if (answer.size() == 1 && absl::ascii_isupper(static_cast<unsigned char>(answer[0]))) {
    answer = absl::StrCat(answer[0] - 'A');
  }
  C3PO_ASSIGN_OR_RETURN(const int gold, LabelIndex("answer", answer, 0, texts.size()));
  return MmluItem(TextOfScalar(json, "id"), subject, question, texts, gold);
}

absl::StatusOr<TaskItem> ParseWinoGrande(absl::string_view line, absl::string_view) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  C3PO_ASSIGN_OR_RETURN(const std::string sentence, Text(json, "sentence"));
  C3PO_ASSIGN_OR_RETURN(const std::string first, Text(json, "option1"));
  C3PO_ASSIGN_OR_RETURN(const std::string second, Text(json, "option2"));
  const size_t blank = sentence.find('_');
  if (blank == std::string::npos) return FieldError("sentence", "has no blank \"_\"");
  C3PO_ASSIGN_OR_RETURN(const int gold, LabelIndex("answer", TextOfScalar(json, "answer"), 1, 2));
  const std::string before(absl::StripAsciiWhitespace(absl::string_view(sentence).substr(0, blank)));
  if (before.empty()) return FieldError("sentence", "begins with its blank: nothing is left to ask");
  const std::string rest = sentence.substr(blank + 1);
  return ChoiceItem(TextOfScalar(json, "qID"), before, {absl::StrCat(first, rest), absl::StrCat(second, rest)}, gold);
}

absl::StatusOr<TaskItem> ParseGsm8k(absl::string_view line, absl::string_view) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  C3PO_ASSIGN_OR_RETURN(const std::string question, Text(json, "question"));
  C3PO_ASSIGN_OR_RETURN(const std::string answer, Text(json, "answer"));
  const size_t mark = answer.rfind("####");
  if (mark == std::string::npos) return FieldError("answer", "has no \"####\" before the result");
  TaskItem item;
  item.prompt = absl::StrCat("Question: ", absl::StripAsciiWhitespace(question), "\nAnswer:");
  item.answer = std::string(absl::StripAsciiWhitespace(absl::string_view(answer).substr(mark + 4)));
  if (item.answer.empty()) return FieldError("answer", "has nothing after \"####\"");
  return item;
}

const std::vector<BenchmarkFormat>& Formats() {
  static const auto& formats = *new std::vector<BenchmarkFormat>{
      {"samples", {"prompt", "answer"}, TaskKind::kChoice, Metric::kPerToken, ParseSample},
      {"hellaswag", {"ctx_a", "endings"}, TaskKind::kChoice, Metric::kPerByte, ParseHellaSwag},
      {"arc", {"question", "answerKey"}, TaskKind::kChoice, Metric::kPerByte, ParseArc},
      {"piqa", {"goal", "sol1", "sol2"}, TaskKind::kChoice, Metric::kPerByte, ParsePiqa},
      {"winogrande", {"sentence", "option1", "option2"}, TaskKind::kChoice, Metric::kRaw, ParseWinoGrande},
      {"mmlu", {"question", "subject", "choices", "answer"}, TaskKind::kChoice, Metric::kRaw, ParseMmlu},
      {"gsm8k", {"question", "answer"}, TaskKind::kGeneration, Metric::kExactMatch, ParseGsm8k},
  };
  return formats;
}

}  // namespace

absl::StatusOr<const BenchmarkFormat*> DetectFormat(absl::string_view line) {
  C3PO_ASSIGN_OR_RETURN(const Json json, ParseObject(line));
  for (const BenchmarkFormat& format : Formats()) {
    const bool has_all =
        std::all_of(format.keys.begin(), format.keys.end(), [&](const char* key) { return json.contains(key); });
    if (has_all) return &format;
  }
  std::vector<std::string> keys, known;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  for (const BenchmarkFormat& format : Formats()) {
    known.push_back(absl::StrCat(format.name, " (", absl::StrJoin(format.keys, ", "), ")"));
  }
  return absl::InvalidArgumentError(absl::StrCat("of no known format; its keys are ", absl::StrJoin(keys, ", "),
                                                 ", known are ", absl::StrJoin(known, ", ")));
}

}  // namespace c3po
