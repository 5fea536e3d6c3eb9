#include "tests/server/text/chat_case.h"

#include <unistd.h>

#include <utility>

#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "tests/server/text/golden_case.h"

namespace c3po {

std::string ReadText(const std::string& path) { return ReadWholeFile(path, 1 << 24).value(); }

absl::StatusOr<std::unique_ptr<ChatRenderer>> RendererOf(const std::string& config_json) {
  const std::string path = WriteTemporary("tokenizer_config.json", config_json);
  auto templates = ChatTemplates::Read(path);
  unlink(path.c_str());
  C3PO_RETURN_IF_ERROR(templates.status());
  return std::make_unique<ChatRenderer>(*std::move(templates), JinjaRenderer::Options());
}

}  // namespace c3po
