#ifndef C3PO_SERVER_RPC_DOORS_HTTP_MODEL_CALL_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_MODEL_CALL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/rpc/doors/http/http_call.h"

namespace c3po {

// The names that a request's `model` may have here: the model's, and MODEL@COLLECTION for each collection.
std::vector<std::string> ModelNames(absl::string_view model, const std::vector<std::string>& collections);
// The answer to GET /v1/models; with `only`, which is one of the names, to GET /v1/models/NAME. Pure.
std::string ModelAnswer(absl::string_view model, const std::vector<std::string>& names, absl::string_view only,
                        int context_window, int64_t created);

// GET /v1/models and /v1/models/NAME: the model, and it with each collection that the caller may read, kCollectionsMax
// of them at most.
class ModelCall final : public HttpCall {
 public:
  static constexpr size_t kCollectionsMax = 1000;

  // `name` empty: all.
  ModelCall(const HttpRequest& request, const ServiceParts& parts, std::string name);

 protected:
  absl::Status Begin(const std::string& body) override;

 private:
  const std::string name_, header_id_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_MODEL_CALL_H_
