#include "server/rpc/doors/http/openai_door.h"

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/rpc/doors/http/completion_call.h"
#include "server/rpc/doors/http/embedding_call.h"
#include "server/rpc/doors/http/model_call.h"
#include "server/rpc/doors/http/openai_error.h"

namespace c3po {
namespace {

constexpr char kModels[] = "/v1/models";

// "%2F" of a name in a path; what is no such escape stays.
std::string Unescaped(absl::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) {
      const char c = at < text.size() ? text[at] : '?';
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    const int high = digit(i + 1), low = digit(i + 2);
    const bool escape = text[i] == '%' && high >= 0 && low >= 0;
    plain.push_back(escape ? static_cast<char>(high * 16 + low) : text[i]);
    if (escape) i += 2;
  }
  return plain;
}

HttpRouting WrongMethod(const char* allowed) {
  HttpRouting routing{ErrorAnswer(405, absl::StrCat("the method must be ", allowed)), nullptr};
  routing.answer.head.headers.push_back({"allow", allowed});
  return routing;
}

HttpRouting Health(const ServiceParts& parts) {
  HttpRouting routing;
  routing.answer.head.status = parts.serving() ? 200 : 503;
  routing.answer.head.content_type.clear();
  return routing;
}

std::shared_ptr<HttpCall> PostedCall(const HttpRequest& request, const ServiceParts& parts) {
  if (request.path == "/v1/chat/completions") return std::make_shared<CompletionCall>(request, parts, /*chat=*/true);
  if (request.path == "/v1/completions") return std::make_shared<CompletionCall>(request, parts, /*chat=*/false);
  return std::make_shared<EmbeddingCall>(request, parts);
}

HttpRouting Route(const HttpRequest& request, const ServiceParts& parts) {
  absl::string_view name = request.path;
  const bool posted = name == "/v1/chat/completions" || name == "/v1/completions" || name == "/v1/embeddings";
  const bool models = absl::ConsumePrefix(&name, kModels) && (name.empty() || absl::ConsumePrefix(&name, "/"));
  if (!posted && !models && request.path != "/health") return {ErrorAnswer(404, "there is no such path"), nullptr};
  if (request.method != (posted ? "POST" : "GET")) return WrongMethod(posted ? "POST" : "GET");
  if (models) return {{}, std::make_shared<ModelCall>(request, parts, Unescaped(name))};
  if (!posted) return Health(parts);
  // A page of the web may send texts and forms to any address without being asked, and nothing else.
  if (request.content_type != "application/json")
    return {ErrorAnswer(415, "the Content-Type must be application/json"), nullptr};
  return {{}, PostedCall(request, parts)};
}

}  // namespace

HttpRouter OpenAiRouter(const ServiceParts& parts) {
  return [&parts](const HttpRequest& request) { return Route(request, parts); };
}

}  // namespace c3po
