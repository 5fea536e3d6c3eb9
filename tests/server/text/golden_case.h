#ifndef C3PO_TESTS_SERVER_TEXT_GOLDEN_CASE_H_
#define C3PO_TESTS_SERVER_TEXT_GOLDEN_CASE_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/text/tokenizer.h"

namespace c3po {

// Reads what tests/golden/tokenizer/make_tokenizer_goldens.py wrote; its docstring defines the files.

std::string GoldenPath(const std::string& name);
std::vector<nlohmann::json> ReadJsonLines(const std::string& path);

// The test strings, each valid UTF-8.
std::vector<std::string> GoldenStrings();

// Where deploy/install_deps.sh puts the OLMo tokenizer.
std::string OlmoTokenizerPath();

// The tokenizer that a case's header describes: its base file, with the header's overrides in a temporary copy.
absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadCase(const nlohmann::json& header);

// Writes `content` to a file of this process and test, and gives its path.
std::string WriteTemporary(const std::string& name, const std::string& content);

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_TEXT_GOLDEN_CASE_H_
