#include "server/rpc/server_service.h"

#include <string>
#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/rpc/convert.h"
#include "server/rpc/profiles.h"

namespace c3po {

ServerService::ServerService(const ServiceParts& parts, std::map<std::string, uint64_t> limits)
    : parts_(parts), limits_(std::move(limits)), started_(SteadyNow()) {}

grpc::ServerUnaryReactor* ServerService::GetServerInfo(grpc::CallbackServerContext* context,
                                                       const v1::GetServerInfoRequest*,
                                                       v1::GetServerInfoResponse* response) {
  CallState call(context, parts_, Metrics::Rpc::kGetServerInfo);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] {
    C3PO_RETURN_IF_ERROR(call.entry());
    Fill(call.collections(), response);
    return absl::OkStatus();
  });
  reactor->Finish(call.End(status));
  return reactor;
}

void ServerService::Fill(const CollectionAccess& collections, v1::GetServerInfoResponse* response) const {
  const PipelineParts& parts = parts_.pipeline_parts;
  const ModelShape& shape = parts.model->shape();
  response->set_version(parts_.version);
  v1::ModelInfo* model = response->mutable_model();
  model->set_name(shape.name);
  model->set_architecture(shape.architecture);
  model->set_digest(shape.digest);
  model->set_dtype(shape.dtype);
  model->set_arithmetic(shape.arithmetic);
  model->set_kv_cache_dtype(shape.kv_cache_dtype);
  model->set_weights(shape.weights);
  model->set_device(shape.device);
  model->set_layers(static_cast<uint32_t>(shape.layers));
  model->set_moe_layers(static_cast<uint32_t>(shape.moe_layers));
  model->set_experts(static_cast<uint32_t>(shape.experts));
  model->set_experts_per_token(static_cast<uint32_t>(shape.experts_per_token));
  model->set_hidden_size(static_cast<uint32_t>(shape.hidden_size));
  model->set_vocabulary_size(static_cast<uint32_t>(shape.vocabulary_size));
  model->set_context_window(static_cast<uint32_t>(shape.context_window));
  model->set_parameters(static_cast<uint64_t>(shape.parameters));
  model->set_chat(parts.text->has_chat());
  response->set_batch_invariance(shape.batch_invariant ? v1::BATCH_INVARIANCE_BITWISE : v1::BATCH_INVARIANCE_NONE);
  v1::EmbedderInfo* embedder = response->mutable_embedder();
  embedder->set_name(parts.embedding->name());
  embedder->set_digest(parts.embedding->digest());
  embedder->set_dimension(static_cast<uint32_t>(parts.embedding->dimension()));
  *response->mutable_default_optimization() = SettingsToProto(parts_.profiles->defaults());
  if (!collections.MayRead(parts_.profiles->defaults().collection))
    response->mutable_default_optimization()->clear_collection();
  for (const auto& [name, value] : limits_) (*response->mutable_limits())[name] = value;
  (*response->mutable_limits())["kv_cache_tokens"] = static_cast<uint64_t>(parts_.kv_cache_tokens);
  const std::string experts_limit = "experts_per_token_max";  // The model's, where the setting is 0.
  (*response->mutable_limits())[experts_limit] = static_cast<uint64_t>(parts.limits.experts_per_token_max);
  for (const std::string& warning : parts_.warnings()) response->add_warnings(warning);
  response->set_uptime_seconds(absl::ToDoubleSeconds(SteadyNow() - started_));
}

}  // namespace c3po
