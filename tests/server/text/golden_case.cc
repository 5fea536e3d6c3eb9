#include "tests/server/text/golden_case.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace c3po {

std::string GoldenPath(const std::string& name) { return absl::StrCat(C3PO_TESTDATA_DIR, "/tokenizer/", name); }

std::vector<nlohmann::json> ReadJsonLines(const std::string& path) {
  std::ifstream stream(path);
  EXPECT_TRUE(stream.good()) << path;
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::vector<std::string> GoldenStrings() {
  std::vector<std::string> strings;
  for (const nlohmann::json& line : ReadJsonLines(GoldenPath("strings.jsonl"))) strings.push_back(line);
  return strings;
}

std::string OlmoTokenizerPath() {
  const char* cache = std::getenv("C3PO_CACHE_DIR");
  return absl::StrCat(cache != nullptr ? cache : C3PO_DEFAULT_CACHE_DIR, "/downloads/gpt-neox-olmo-dolma-v1_5.json");
}

std::string WriteTemporary(const std::string& name, const std::string& content) {
  const std::string path = absl::StrCat(testing::TempDir(), "/c3po_text_", getpid(), "_", name);
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadCase(const nlohmann::json& header) {
  const std::string name = header["case"];
  if (name == "olmo") return Tokenizer::Load(OlmoTokenizerPath());
  std::ifstream stream(GoldenPath(header["base"]));
  nlohmann::json data = nlohmann::json::parse(stream);
  data.update(header["overrides"]);
  data["model"].update(header["model_overrides"]);
  const std::string path = WriteTemporary(absl::StrCat(name, ".json"), data.dump());
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::Load(path);
  unlink(path.c_str());
  return tokenizer;
}

}  // namespace c3po
