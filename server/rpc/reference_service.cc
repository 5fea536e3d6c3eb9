#include "server/rpc/reference_service.h"

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/pipeline/reference_importer.h"
#include "server/rpc/add_references_reactor.h"
#include "server/rpc/convert.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

constexpr uint32_t kPageSizeDefault = 100, kPageSizeMax = 1000;
constexpr int kSearchDefault = 3;

// Runs `work` on the worker pool and finishes the call with what it returns.
grpc::ServerUnaryReactor* OnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc,
                                   std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto call = std::make_shared<CallState>(context, parts.pipeline_parts.metrics, rpc);
  const bool taken = parts.pipeline_parts.workers->Submit(
      [reactor, call, work = std::move(work)] { reactor->Finish(call->End(work())); });
  if (!taken)
    reactor->Finish(call->End(absl::ResourceExhaustedError("the queue is full: too many requests wait for a worker")));
  return reactor;
}

// Hears the one scored token that carries a prompt's mean hidden state out of the engine.
class SearchReactor final : public grpc::ServerUnaryReactor {
 public:
  SearchReactor(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                const ServiceParts& parts)
      : parts_(parts),
        call_(context, parts.pipeline_parts.metrics, Metrics::Rpc::kReferencesSearch),
        response_(response) {
    if (const absl::Status status = Begin(bytes); !status.ok()) Finish(call_.End(status));
  }
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) {
    C3PO_RETURN_IF_ERROR(ParseInto(bytes, request_));
    const auto on_embedding = [this](absl::StatusOr<std::vector<float>> embedding) {
      Finish(call_.End(Answer(std::move(embedding))));
    };
    return parts_.pipeline->Embed(call_.Context(""), request_.text(), on_embedding);
  }

  absl::Status Answer(absl::StatusOr<std::vector<float>> embedding) {
    C3PO_RETURN_IF_ERROR(embedding.status());
    const std::string collection = request_.collection().empty() ? "default" : request_.collection();
    const uint32_t k = request_.has_k() ? request_.k() : kSearchDefault;
    if (k < 1 || k > kPageSizeMax)
      return absl::InvalidArgumentError(absl::StrCat("k: is ", k, ", must be in [1, ", kPageSizeMax, "]"));
    const ReferenceCatalog& catalog = *parts_.pipeline_parts.catalog;
    C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> found,
                          catalog.Search(collection, *embedding, static_cast<int>(k), request_.successful_only()));
    v1::SearchReferencesResponse message;
    for (const Neighbor& neighbor : found) {
      const auto record = catalog.GetRecord(neighbor.reference_id);
      if (!record.ok()) continue;  // Deleted since the search.
      auto* hit = message.add_hits();
      *hit->mutable_reference() = RecordToProto(**record, /*with_pathway=*/false);
      hit->set_distance(neighbor.distance);
    }
    *response_ = ToBytes(message);
    return absl::OkStatus();
  }

  const ServiceParts& parts_;
  CallState call_;
  v1::SearchReferencesRequest request_;
  grpc::ByteBuffer* const response_;
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ReferenceService::Add(
    grpc::CallbackServerContext* context) {
  return new AddReferencesReactor(context, parts_);
}

grpc::ServerUnaryReactor* ReferenceService::Search(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return new SearchReactor(context, *request, response, parts_);
}

grpc::ServerUnaryReactor* ReferenceService::Get(grpc::CallbackServerContext* context,
                                                const v1::GetReferenceRequest* request,
                                                v1::GetReferenceResponse* response) {
  return OnWorker(context, parts_, Metrics::Rpc::kReferencesGet, [this, request, response]() -> absl::Status {
    if (request->id().empty()) return absl::InvalidArgumentError("id: must not be empty");
    C3PO_ASSIGN_OR_RETURN(const ReferenceRecord record, parts_.store->Get(request->id()));
    *response->mutable_reference() = RecordToProto(record, request->include_pathway());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ReferenceService::List(grpc::CallbackServerContext* context,
                                                 const v1::ListReferencesRequest* request,
                                                 v1::ListReferencesResponse* response) {
  return OnWorker(context, parts_, Metrics::Rpc::kReferencesList, [this, request, response]() -> absl::Status {
    const uint32_t size = request->has_page_size() ? request->page_size() : kPageSizeDefault;
    if (size < 1 || size > kPageSizeMax) {
      return absl::InvalidArgumentError(absl::StrCat("page_size: is ", size, ", must be in [1, ", kPageSizeMax, "]"));
    }
    C3PO_ASSIGN_OR_RETURN(const std::vector<ReferenceRecord> records,
                          parts_.store->List(request->collection(), request->page_token(), static_cast<int>(size)));
    for (const ReferenceRecord& record : records)
      *response->add_references() = RecordToProto(record, /*with_pathway=*/false);
    if (records.size() == size) response->set_next_page_token(records.back().id);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ReferenceService::Delete(grpc::CallbackServerContext* context,
                                                   const v1::DeleteReferencesRequest* request,
                                                   v1::DeleteReferencesResponse* response) {
  return OnWorker(context, parts_, Metrics::Rpc::kReferencesDelete, [this, request, response]() -> absl::Status {
    ReferenceCatalog& catalog = *parts_.pipeline_parts.catalog;
    if (request->ids().empty() == request->collection().empty()) {
      return absl::InvalidArgumentError("ids: give either ids or a collection");
    }
    const std::vector<std::string> ids(request->ids().begin(), request->ids().end());
    C3PO_ASSIGN_OR_RETURN(const int64_t deleted,
                          ids.empty() ? catalog.EraseCollection(request->collection()) : catalog.Erase(ids));
    ReportReferences(catalog, parts_.pipeline_parts.metrics);
    response->set_deleted(static_cast<uint64_t>(deleted));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ReferenceService::GetStats(grpc::CallbackServerContext* context, const v1::GetStatsRequest*,
                                                     v1::GetStatsResponse* response) {
  return OnWorker(context, parts_, Metrics::Rpc::kReferencesGetStats, [this, response]() -> absl::Status {
    const PipelineParts& parts = parts_.pipeline_parts;
    response->set_model_digest(parts.model->shape().digest);
    response->set_embedder_digest(parts.embedding->digest());
    response->set_index_generation(static_cast<uint64_t>(parts.catalog->generation()));
    C3PO_ASSIGN_OR_RETURN(const std::vector<CollectionStats> all,
                          parts_.store->Stats(parts.model->shape().digest, parts.embedding->digest()));
    for (const CollectionStats& stats : all) {
      v1::CollectionStats* out = response->add_collections();
      out->set_collection(stats.collection);
      out->set_references(static_cast<uint64_t>(stats.references));
      out->set_successful(static_cast<uint64_t>(stats.successful));
      out->set_usable(static_cast<uint64_t>(stats.usable));
    }
    return absl::OkStatus();
  });
}

}  // namespace c3po
