#include "client/eval/sample_line.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/json_nesting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr absl::string_view kKeys[] = {"prompt", "answer", "choices", "metadata", "reference_id", "id"};
constexpr size_t kLineBytesMax = 3 << 20;  // gRPC servers take messages up to 4 MiB by default.

absl::Status ReadText(const Json& object, const char* key, std::string* text) {
  const auto found = object.find(key);
  if (found == object.end()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is missing"));
  if (!found->is_string()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is not a text"));
  *text = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadSample(const Json& object, v1::ReferenceSample* sample) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  C3PO_RETURN_IF_ERROR(ReadText(object, "prompt", sample->mutable_prompt()));
  C3PO_RETURN_IF_ERROR(ReadText(object, "answer", sample->mutable_answer()));
  if (const auto choices = object.find("choices"); choices != object.end() && !choices->is_null()) {
    if (!choices->is_array()) return absl::InvalidArgumentError("\"choices\" is not a list");
    for (const Json& choice : *choices) {
      if (!choice.is_string()) return absl::InvalidArgumentError("\"choices\" holds something that is not a text");
      sample->add_choices(choice.get<std::string>());
    }
  }
  if (const auto metadata = object.find("metadata"); metadata != object.end() && !metadata->is_null()) {
    if (!metadata->is_object()) return absl::InvalidArgumentError("\"metadata\" is not an object");
    for (const auto& [name, value] : metadata->items()) {
      (*sample->mutable_metadata())[name] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
  if (object.contains("reference_id")) C3PO_RETURN_IF_ERROR(ReadText(object, "reference_id", sample->mutable_id()));
  return absl::OkStatus();
}

}  // namespace

std::string SampleLineText(const v1::ReferenceSample& sample) {
  nlohmann::ordered_json line = {{"prompt", sample.prompt()}, {"answer", sample.answer()}};
  if (!sample.choices().empty()) {
    line["choices"] = std::vector<std::string>(sample.choices().begin(), sample.choices().end());
  }
  if (!sample.metadata().empty()) {
    line["metadata"] = std::map<std::string, std::string>(sample.metadata().begin(), sample.metadata().end());
  }
  if (!sample.id().empty()) line["reference_id"] = sample.id();
  return line.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<v1::ReferenceSample> ParseSampleLine(absl::string_view line, std::vector<std::string>* unread) {
  if (line.size() > kLineBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("longer than ", kLineBytesMax, " bytes"));
  }
  if (NestsDeeperThan(line, kJsonLevelsMax)) {
    return absl::InvalidArgumentError(absl::StrCat("nests deeper than ", kJsonLevelsMax, " levels"));
  }
  // nlohmann throws; nothing of it leaves this function.
  try {
    v1::ReferenceSample sample;
    const Json object = Json::parse(line.begin(), line.end());
    C3PO_RETURN_IF_ERROR(ReadSample(object, &sample));
    for (const auto& [key, value] : object.items()) {
      const bool known = std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
      if (unread != nullptr && !known) unread->push_back(key);
    }
    return sample;
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at ...": the code in brackets says nothing to the reader.
    const std::string what = error.what();
    const size_t text = what.find("] ");
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON: ", (text == std::string::npos ? what : what.substr(text + 2)).substr(0, 200)));
  }
}

absl::StatusOr<std::vector<NumberedLine>> ReadLines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::vector<NumberedLine> lines;
  size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back({number, std::move(line)});
    line.clear();
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read after line ", number));
  return lines;
}

absl::StatusOr<std::vector<v1::ReferenceSample>> ReadSampleFile(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<NumberedLine> lines, ReadLines(path));
  std::vector<v1::ReferenceSample> samples;
  for (const NumberedLine& line : lines) {
    absl::StatusOr<v1::ReferenceSample> sample = ParseSampleLine(line.text);
    if (!sample.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", line.number, ": ", sample.status().message()));
    }
    samples.push_back(*std::move(sample));
  }
  return samples;
}

}  // namespace c3po
