#ifndef C3PO_TESTS_SERVER_TEXT_CHAT_CASE_H_
#define C3PO_TESTS_SERVER_TEXT_CHAT_CASE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/text/chat_renderer.h"

namespace c3po {

std::string ReadText(const std::string& path);

// Of a model folder with this tokenizer_config.json.
absl::StatusOr<std::unique_ptr<ChatRenderer>> RendererOf(const std::string& config_json);

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_TEXT_CHAT_CASE_H_
