#include "server/rpc/reference_service.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/types/metadata_filter.h"
#include "index/types/reference_validation.h"
#include "server/pipeline/reference_gauges.h"
#include "server/pipeline/reference_importer.h"
#include "server/rpc/add_references_reactor.h"
#include "server/rpc/backup_reactor.h"
#include "server/rpc/convert.h"
#include "server/rpc/filter_message.h"
#include "server/rpc/learning_reactors.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

constexpr uint32_t kPageSizeDefault = 100, kPageSizeMax = 1000;
constexpr uint32_t kListAtOnce = 8;  // Records read at once, so that few are in memory that a page has no room for.
constexpr int kDeletedMax = 10000;   // ids of one Delete: what does not exist is told, id by id
// Of the longest collection's name, a colon and the longest id of a sample's own.
constexpr size_t kIdBytesMax = 128 + 1 + 64;
constexpr int kSearchDefault = 3;

absl::Status CheckId(absl::string_view field, absl::string_view id) {
  if (id.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": must not be empty"));
  if (id.size() > kIdBytesMax)
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": has ", id.size(), " bytes; no id has more than ", kIdBytesMax));
  return absl::OkStatus();
}

bool HasReferences(const ReferenceCatalog& catalog, absl::string_view collection) {
  const std::vector<CatalogCollection> all = catalog.Collections();
  return std::any_of(all.begin(), all.end(), [&](const CatalogCollection& one) { return one.name == collection; });
}

void StatsToProto(const CollectionStats& stats, v1::CollectionStats* out) {
  out->set_collection(stats.collection);
  out->set_references(static_cast<uint64_t>(stats.references));
  out->set_successful(static_cast<uint64_t>(stats.successful));
  out->set_usable(static_cast<uint64_t>(stats.usable));
}

// The store's own words for an id that it does not hold.
absl::Status NoReference(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("reference \"", id, "\" does not exist"));
}

// The collections of damaged references by their ids. The catalog has none of these.
std::map<std::string, std::string> CollectionsOfDamaged(const ReferenceStore& store) {
  std::map<std::string, std::string> result;
  for (DamagedRow& row : store.Damaged()) {
    if (row.kind == DamagedRow::Kind::kReference) result.emplace(std::move(row.name), std::move(row.collection));
  }
  return result;
}

// Where List goes on. A page token is the last id, behind its collection and a newline (which is in no collection's
// name) where a caller lists all collections that it may read.
struct ListPosition {
  std::string collection, after_id;
};

ListPosition PositionOf(const std::string& token) {
  const size_t newline = token.find('\n');
  if (newline == std::string::npos) return {"", token};
  return {token.substr(0, newline), token.substr(newline + 1)};
}

std::string TokenOf(const ListPosition& position) {
  return position.collection.empty() ? position.after_id : absl::StrCat(position.collection, "\n", position.after_id);
}

// Hears the one scored token that carries a prompt's mean hidden state out of the engine. It holds itself until OnDone.
// The embedding's callback holds it as well, and may come twice where an exception lost the first.
class SearchReactor final : public grpc::ServerUnaryReactor {
 public:
  static SearchReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
                              grpc::ByteBuffer* response, const ServiceParts& parts) {
    const auto reactor = std::make_shared<SearchReactor>(context, response, parts);
    reactor->self_ = reactor;
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Begin(bytes, reactor); });
    if (!status.ok()) reactor->End(status);
    return reactor.get();
  }
  SearchReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, const ServiceParts& parts)
      : parts_(parts), call_(context, parts, Metrics::Rpc::kReferencesSearch), response_(response) {}
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes, const std::shared_ptr<SearchReactor>& self) {
    C3PO_RETURN_IF_ERROR(call_.entry());
    C3PO_RETURN_IF_ERROR(call_.HoldBytes(BytesOf(bytes)));
    C3PO_RETURN_IF_ERROR(ParseInto(bytes, request_));
    collection_ = request_.collection().empty() ? "default" : request_.collection();
    call_.NoteCollection(collection_);
    C3PO_RETURN_IF_ERROR(call_.collections().CheckRead("collection", collection_));
    filter_ = FilterFromProto(request_.filter());
    C3PO_RETURN_IF_ERROR(ValidateFilter("filter", filter_));
    if (parts_.pipeline_parts.admission != nullptr) {
      C3PO_ASSIGN_OR_RETURN(permit_, parts_.pipeline_parts.admission->Enter(call_.caller()));
    }
    const CallContext context = call_.Context("");
    const auto on_embedding = [self](absl::StatusOr<std::vector<float>> embedding) {
      self->End(CatchEscaped(ThreadKind::kWorker, [&] { return self->Answer(std::move(embedding)); }));
    };
    const auto embed = [self, context, on_embedding] {
      return self->parts_.pipeline->Embed(context, self->request_.text(), on_embedding);
    };
    const auto failed = [self](const absl::Status& status) { self->End(status); };
    return OnceSeen(parts_, "min_index_generation", request_.min_index_generation(), context, embed, failed);
  }

  void End(const absl::Status& status) {
    if (ended_.exchange(true)) return;
    permit_ = nullptr;
    Finish(call_.End(status));
  }

  absl::Status Answer(absl::StatusOr<std::vector<float>> embedding) {
    C3PO_RETURN_IF_ERROR(embedding.status());
    size_t first = 0;
    if (!request_.page_token().empty() && !absl::SimpleAtoi(request_.page_token(), &first))
      return absl::InvalidArgumentError("page_token: is not one of an earlier answer");
    const uint32_t k = request_.has_k() ? request_.k() : kSearchDefault;
    if (k < 1 || k > kPageSizeMax)
      return absl::InvalidArgumentError(absl::StrCat("k: is ", k, ", must be in [1, ", kPageSizeMax, "]"));
    C3PO_ASSIGN_OR_RETURN(const Hits found, Find(*embedding, static_cast<int>(k)));
    v1::SearchReferencesResponse message;
    message.set_index_generation(static_cast<uint64_t>(found.generation));
    size_t bytes = 0;
    for (size_t i = first; i < found.hits.size(); ++i) {
      C3PO_RETURN_IF_ERROR(call_.CheckCancelled());
      const auto& [record, distance] = found.hits[i];
      v1::SearchReferencesResponse::Hit hit;
      *hit.mutable_reference() = RecordToProto(*record, /*with_pathway=*/false);
      hit.set_distance(distance);
      bytes += hit.ByteSizeLong();
      if (bytes > kAnswerBytesMax && !message.hits().empty()) {
        message.set_next_page_token(absl::StrCat(i));
        break;
      }
      *message.add_hits() = std::move(hit);
    }
    C3PO_ASSIGN_OR_RETURN(*response_, ToBytes(message));
    return call_.HoldBytes(BytesOf(*response_));
  }

  struct Hits {
    int64_t generation = 0;  // of the state that they are of, at least
    std::vector<std::pair<std::shared_ptr<const ReferenceRecord>, float>> hits;
  };

  // Search and the records that it names, of one state of the catalog, unless changes come faster than it can be read.
  absl::StatusOr<Hits> Find(absl::Span<const float> embedding, int k) const {
    constexpr int kReadsMax = 4;
    const ReferenceCatalog& catalog = *parts_.pipeline_parts.catalog;
    for (int read = 1;; ++read) {
      Hits found;
      found.generation = catalog.generation();
      C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> neighbors,
                            catalog.Search(collection_, embedding, k, request_.successful_only(),
                                           /*state_layer=*/std::nullopt, &filter_));
      for (const Neighbor& neighbor : neighbors) {
        auto record = catalog.GetRecord(neighbor.reference_id);
        if (record.ok()) found.hits.emplace_back(*std::move(record), neighbor.distance);  // Else deleted since.
      }
      if (catalog.generation() == found.generation || read == kReadsMax) return found;
    }
  }

  const ServiceParts& parts_;
  CallState call_;
  v1::SearchReferencesRequest request_;
  std::string collection_;
  MetadataFilter filter_;
  grpc::ByteBuffer* const response_;
  std::unique_ptr<AdmissionController::Permit> permit_;
  std::atomic<bool> ended_{false};
  std::shared_ptr<SearchReactor> self_;
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ReferenceService::Add(
    grpc::CallbackServerContext* context) {
  return AddReferencesReactor::Start(context, parts_);
}

grpc::ServerUnaryReactor* ReferenceService::Search(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return SearchReactor::Start(context, *request, response, parts_);
}

grpc::ServerUnaryReactor* ReferenceService::Get(grpc::CallbackServerContext* context,
                                                const v1::GetReferenceRequest* request,
                                                v1::GetReferenceResponse* response) {
  const auto get = [this, request, response](CallState& call) -> absl::Status {
    C3PO_RETURN_IF_ERROR(CheckId("id", request->id()));
    const absl::StatusOr<ReferenceRecord> record = parts_.store->Get(request->id());
    // An id may have its collection's name in it: of one that the caller may not read there is nothing to learn.
    if (absl::IsDataLoss(record.status())) {
      const std::map<std::string, std::string> damaged = CollectionsOfDamaged(*parts_.store);
      const auto found = damaged.find(request->id());
      if (found != damaged.end() && !call.collections().MayRead(found->second)) return NoReference(request->id());
    }
    C3PO_RETURN_IF_ERROR(record.status());
    if (!call.collections().MayRead(record->collection)) return NoReference(request->id());
    *response->mutable_reference() = RecordToProto(*record, request->include_pathway());
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesGet, *request, response, get);
}

grpc::ServerUnaryReactor* ReferenceService::List(grpc::CallbackServerContext* context,
                                                 const v1::ListReferencesRequest* request,
                                                 v1::ListReferencesResponse* response) {
  const auto list = [this, request, response](CallState& call) -> absl::Status {
    call.NoteCollection(request->collection());
    const CollectionAccess& access = call.collections();
    const bool every = request->collection().empty();
    if (!every) C3PO_RETURN_IF_ERROR(access.CheckRead("collection", request->collection()));
    const uint32_t size = request->has_page_size() ? request->page_size() : kPageSizeDefault;
    if (size < 1 || size > kPageSizeMax) {
      return absl::InvalidArgumentError(absl::StrCat("page_size: is ", size, ", must be in [1, ", kPageSizeMax, "]"));
    }
    ListPosition position = PositionOf(request->page_token());
    // "" is the store's word for all of them.
    std::vector<std::string> names = {request->collection()};
    if (every && !access.ReadsEverything()) names = access.Readable();
    uint32_t listed = 0;
    size_t bytes = 0;
    for (const std::string& name : names) {
      if (names.size() > 1) {
        if (name < position.collection) continue;
        if (name != position.collection) position = {name, ""};
      }
      for (bool more = true; more;) {
        C3PO_RETURN_IF_ERROR(call.CheckCancelled());
        if (listed == size) {
          response->set_next_page_token(TokenOf(position));
          return absl::OkStatus();
        }
        const auto wanted = static_cast<int>(std::min(kListAtOnce, size - listed));
        C3PO_ASSIGN_OR_RETURN(const std::vector<ReferenceRecord> records,
                              parts_.store->List(name, position.after_id, wanted));
        for (const ReferenceRecord& record : records) {
          v1::Reference reference = RecordToProto(record, /*with_pathway=*/false);
          bytes += reference.ByteSizeLong();
          if (bytes > kAnswerBytesMax && listed > 0) {
            response->set_next_page_token(TokenOf(position));
            return absl::OkStatus();
          }
          *response->add_references() = std::move(reference);
          position.after_id = record.id;
          ++listed;
        }
        more = records.size() == static_cast<size_t>(wanted);
      }
    }
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesList, *request, response, list);
}

grpc::ServerUnaryReactor* ReferenceService::Delete(grpc::CallbackServerContext* context,
                                                   const v1::DeleteReferencesRequest* request,
                                                   v1::DeleteReferencesResponse* response) {
  const auto erase = [this, request, response](CallState& call) -> absl::Status {
    call.NoteCollection(request->collection());
    ReferenceCatalog& catalog = *parts_.pipeline_parts.catalog;
    if (request->ids().empty() == request->collection().empty()) {
      return absl::InvalidArgumentError("ids: give either ids or a collection");
    }
    if (request->ids_size() > kDeletedMax)
      return absl::InvalidArgumentError(absl::StrCat("ids: ", request->ids_size(), " are more than ", kDeletedMax));
    for (int i = 0; i < request->ids_size(); ++i)
      C3PO_RETURN_IF_ERROR(CheckId(absl::StrCat("ids[", i, "]"), request->ids(i)));
    if (!request->collection().empty())
      C3PO_RETURN_IF_ERROR(call.collections().CheckWrite("collection", request->collection()));
    C3PO_RETURN_IF_ERROR(catalog.CatchUp());  // What other servers have added may be deleted.
    std::vector<std::string> ids;
    const std::map<std::string, std::string> damaged = CollectionsOfDamaged(*parts_.store);
    for (const std::string& id : request->ids()) {
      std::optional<std::string> collection = catalog.CollectionOf(id);
      if (const auto found = damaged.find(id); !collection && found != damaged.end()) collection = found->second;
      if (!collection || !call.collections().MayRead(*collection)) {
        response->add_not_found(id);
        continue;
      }
      C3PO_RETURN_IF_ERROR(call.collections().CheckWrite("ids", *collection));
      ids.push_back(id);
    }
    const bool whole_collection = request->ids().empty();
    C3PO_ASSIGN_OR_RETURN(const int64_t deleted,
                          whole_collection ? catalog.EraseCollection(request->collection()) : catalog.Erase(ids));
    ReportReferences(catalog, parts_.pipeline_parts.metrics);
    response->set_deleted(static_cast<uint64_t>(deleted));
    response->set_index_generation(static_cast<uint64_t>(catalog.generation()));
    call.Audit("delete", {{"whole_collection", whole_collection}, {"deleted", deleted}});
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesDelete, *request, response, erase);
}

grpc::ServerUnaryReactor* ReferenceService::GetStats(grpc::CallbackServerContext* context,
                                                     const v1::GetStatsRequest* request,
                                                     v1::GetStatsResponse* response) {
  const auto get = [this, request, response](CallState& call) -> absl::Status {
    const PipelineParts& parts = parts_.pipeline_parts;
    response->set_model_digest(parts.model->shape().digest);
    response->set_embedder_digest(parts.embedding->digest());
    response->set_index_generation(static_cast<uint64_t>(parts.catalog->generation()));
    C3PO_ASSIGN_OR_RETURN(const auto all, AllStats(call.collections()));
    C3PO_RETURN_IF_ERROR(call.CheckCancelled());
    StatsPage(all, request->page_token(), kAnswerBytesMax, response);
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesGetStats, *request, response, get);
}

absl::StatusOr<std::map<std::string, v1::CollectionStats>> ReferenceService::AllStats(
    const CollectionAccess& access) const {
  const PipelineParts& parts = parts_.pipeline_parts;
  C3PO_ASSIGN_OR_RETURN(const std::vector<CollectionStats> stored,
                        parts_.store->Stats(parts.model->shape().digest, parts.embedding->digest()));
  std::map<std::string, v1::CollectionStats> all;
  for (const CollectionStats& stats : stored) {
    if (access.MayRead(stats.collection)) StatsToProto(stats, &all[stats.collection]);
  }
  for (const std::string& collection : parts_.profiles->Collections()) {
    if (!access.MayRead(collection)) continue;
    v1::CollectionStats& stats = all[collection];
    stats.set_collection(collection);
    stats.set_profile(true);
  }
  return all;
}

grpc::ServerUnaryReactor* ReferenceService::GetCollection(grpc::CallbackServerContext* context,
                                                          const v1::GetCollectionRequest* request,
                                                          v1::GetCollectionResponse* response) {
  const auto get = [this, request, response](CallState& call) -> absl::Status {
    const PipelineParts& parts = parts_.pipeline_parts;
    const std::string name = request->collection().empty() ? "default" : request->collection();
    call.NoteCollection(name);
    C3PO_RETURN_IF_ERROR(call.collections().CheckRead("collection", name));
    response->set_index_generation(static_cast<uint64_t>(parts.catalog->generation()));
    C3PO_ASSIGN_OR_RETURN(const auto all, AllStats(call.collections()));
    const auto found = all.find(name);
    if (found == all.end()) return absl::NotFoundError(absl::StrCat("collection \"", name, "\" does not exist"));
    *response->mutable_stats() = found->second;
    v1::OptimizationOptions asked;
    asked.set_collection(name);
    C3PO_ASSIGN_OR_RETURN(const OptimizationSettings effective, parts_.profiles->Resolve(asked, call.collections()));
    *response->mutable_effective_optimization() = SettingsToProto(effective);
    C3PO_ASSIGN_OR_RETURN(const auto profile, parts_.profiles->Find(name));
    if (profile) {
      *response->mutable_profile() = profile->options;
      response->set_profile_notes(profile->notes);
      response->set_profile_ignored(profile->why_ignored);
    }
    C3PO_ASSIGN_OR_RETURN(const auto prior, parts.shifts->StoredPrior(name));
    if (prior) *response->mutable_prior() = PriorToProto(*prior, parts.model->shape().digest);
    C3PO_ASSIGN_OR_RETURN(const int64_t shifts, parts.shifts->CountShifts(name));
    response->set_amortized_shifts(static_cast<uint64_t>(shifts));
    C3PO_ASSIGN_OR_RETURN(const int64_t foreign, parts.shifts->CountForeignShifts(name));
    response->set_foreign_shifts(static_cast<uint64_t>(foreign));
    C3PO_ASSIGN_OR_RETURN(const auto offsets, parts.offsets->All(name));
    for (const auto& offset : offsets)
      *response->add_offsets() = OffsetToProto(*offset, parts.offsets->IsUsable(*offset));
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesGetCollection, *request, response, get,
                       request->min_index_generation());
}

grpc::ServerUnaryReactor* ReferenceService::SetProfile(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response) {
  const auto set = [this, bytes, response](CallState& call) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const v1::SetProfileRequest request, ParseRequest<v1::SetProfileRequest>(*bytes));
    const std::string name = request.collection().empty() ? "default" : request.collection();
    C3PO_RETURN_IF_ERROR(ValidateCollectionName(name));
    call.NoteCollection(name);
    C3PO_RETURN_IF_ERROR(call.collections().CheckWrite("collection", name));
    C3PO_RETURN_IF_ERROR(parts_.pipeline_parts.catalog->CatchUp());  // Another server may have made the collection.
    v1::SetProfileResponse outcome;
    if (request.has_profile()) {
      // Names that anybody may make up would fill the store unseen.
      if (!HasReferences(*parts_.pipeline_parts.catalog, name))
        return absl::NotFoundError(absl::StrCat("collection \"", name, "\" does not exist; add references first"));
    } else {
      C3PO_ASSIGN_OR_RETURN(const auto held, parts_.profiles->Find(name));
      outcome.set_removed(held != nullptr);
    }
    C3PO_RETURN_IF_ERROR(request.has_profile() ? parts_.profiles->Set(name, {request.profile(), request.notes()})
                                               : parts_.profiles->Remove(name));
    outcome.set_index_generation(static_cast<uint64_t>(parts_.pipeline_parts.catalog->generation()));
    call.Audit(request.has_profile() ? "set_profile" : "remove_profile",
               {{"profile", request.profile().ShortDebugString()}});
    C3PO_ASSIGN_OR_RETURN(*response, ToBytes(outcome));
    return absl::OkStatus();
  };
  return OnStoreWorker(context, parts_, Metrics::Rpc::kReferencesSetProfile, *bytes, response, set);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ReferenceService::TunePrior(grpc::CallbackServerContext* context,
                                                                        const grpc::ByteBuffer* request) {
  return StartTunePrior(context, *request, parts_);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ReferenceService::AmortizeShifts(grpc::CallbackServerContext* context,
                                                                             const grpc::ByteBuffer* request) {
  return StartAmortizeShifts(context, *request, parts_);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ReferenceService::TuneOffset(grpc::CallbackServerContext* context,
                                                                         const grpc::ByteBuffer* request) {
  return StartTuneOffset(context, *request, parts_);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ReferenceService::BackupStore(grpc::CallbackServerContext* context,
                                                                          const grpc::ByteBuffer*) {
  return new BackupReactor(context, parts_);  // The request has no fields.
}

}  // namespace c3po
