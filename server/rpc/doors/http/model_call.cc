#include "server/rpc/doors/http/model_call.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

Json OneModel(absl::string_view model, const std::string& name, int context_window, int64_t created) {
  const bool itself = name == model;
  return {{"id", name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "c3po"},
          {"root", std::string(model)},
          {"parent", itself ? Json(nullptr) : Json(std::string(model))},
          {"max_model_len", context_window}};
}

}  // namespace

std::vector<std::string> ModelNames(absl::string_view model, const std::vector<std::string>& collections) {
  std::vector<std::string> names = {std::string(model)};
  for (const std::string& collection : collections) names.push_back(absl::StrCat(model, "@", collection));
  return names;
}

std::string ModelAnswer(absl::string_view model, const std::vector<std::string>& names, absl::string_view only,
                        int context_window, int64_t created) {
  const auto dump = [](const Json& json) {
    return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
  };
  if (!only.empty()) return dump(OneModel(model, std::string(only), context_window, created));
  Json data = Json::array();
  for (const std::string& name : names) data.push_back(OneModel(model, name, context_window, created));
  return dump({{"object", "list"}, {"data", std::move(data)}});
}

ModelCall::ModelCall(const HttpRequest& request, const ServiceParts& parts, std::string name)
    : HttpCall(request, parts, Metrics::Rpc::kOpenAiModels), name_(std::move(name)), header_id_(request.request_id) {}

absl::Status ModelCall::Begin(const std::string&) {
  (void)call().Context(header_id_);
  const ModelShape& shape = parts().pipeline_parts.model->shape();
  std::vector<std::string> collections;
  for (const CatalogCollection& collection : parts().pipeline_parts.catalog->Collections()) {
    if (collections.size() < kCollectionsMax && call().collections().MayRead(collection.name))
      collections.push_back(collection.name);
  }
  const std::vector<std::string> names = ModelNames(shape.name, collections);
  if (!name_.empty() && !absl::c_linear_search(names, name_))
    return absl::NotFoundError(absl::StrCat("model: there is none of that name; the model here is ", shape.name));
  Answer(ModelAnswer(shape.name, names, name_, shape.context_window, absl::ToUnixSeconds(absl::Now())));
  End(absl::OkStatus());
  return absl::OkStatus();
}

}  // namespace c3po
