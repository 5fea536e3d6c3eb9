#include "server/rpc/learning_reactors.h"

#include <memory>
#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/types/reference_validation.h"
#include "server/rpc/convert.h"
#include "server/rpc/message_fields.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"
#include "server/rpc/queued_stream.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

// Holds itself until OnDone; the work's callbacks hold it as well.
class LearningReactor : public QueuedStream<grpc::ServerWriteReactor<grpc::ByteBuffer>>,
                        public std::enable_shared_from_this<LearningReactor> {
 public:
  LearningReactor(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc)
      : QueuedStream(context, parts, rpc), parts_(parts) {}

  static LearningReactor* Start(std::shared_ptr<LearningReactor> reactor, const grpc::ByteBuffer& request) {
    reactor->self_ = reactor;
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] {
      C3PO_RETURN_IF_ERROR(reactor->call().entry());
      C3PO_RETURN_IF_ERROR(reactor->call().HoldBytes(BytesOf(request)));
      C3PO_RETURN_IF_ERROR(CheckStoreReachable(reactor->parts_));
      return reactor->Begin(request);
    });
    if (!status.ok()) reactor->End(status);
    return reactor.get();
  }
  void OnDone() override { self_.reset(); }

 protected:
  virtual absl::Status Begin(const grpc::ByteBuffer& request) = 0;
  // That holds what was stored until now.
  uint64_t Generation() const { return static_cast<uint64_t>(parts_.pipeline_parts.catalog->generation()); }

  const ServiceParts& parts_;

 private:
  std::shared_ptr<LearningReactor> self_;
};

class TunePriorReactor final : public LearningReactor {
 public:
  TunePriorReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
      : LearningReactor(context, parts, Metrics::Rpc::kReferencesTunePrior) {}

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) override {
    C3PO_ASSIGN_OR_RETURN(const v1::TunePriorRequest request, ParseRequest<v1::TunePriorRequest>(bytes));
    C3PO_ASSIGN_OR_RETURN(TuneRequest tune, TuneFromProto(request, parts_.profiles->defaults()));
    C3PO_RETURN_IF_ERROR(ValidateCollectionName(tune.collection));
    call().NoteCollection(tune.collection);
    C3PO_RETURN_IF_ERROR(call().collections().CheckWrite("collection", tune.collection));
    tune.context = call().Context("");
    const auto self = std::static_pointer_cast<TunePriorReactor>(shared_from_this());
    return parts_.learning->TunePrior(
        std::move(tune), [self](const PriorTuner::Epoch& epoch) { self->OnEpoch(epoch); },
        [self](const absl::StatusOr<std::optional<CollectionPrior>>& prior) { self->OnTuned(prior); });
  }

  void OnEpoch(const PriorTuner::Epoch& epoch) {
    last_.set_epoch(static_cast<uint32_t>(epoch.number));
    if (epoch.number > 0) last_.set_training_loss(epoch.training_loss);
    last_.set_validation_loss(epoch.validation_loss);
    if (epoch.validation_accuracy) last_.set_validation_accuracy(*epoch.validation_accuracy);
    last_.set_seconds(epoch.seconds);
    Send(last_);
  }

  void OnTuned(const absl::StatusOr<std::optional<CollectionPrior>>& prior) {
    if (!prior.ok()) return End(prior.status(), /*drop_queue=*/true);
    last_.set_finished(true);
    if (*prior) {
      call().Audit("tune_prior", {{"references", (*prior)->references},
                                  {"validation_loss_before", (*prior)->validation_loss_before},
                                  {"validation_loss_after", (*prior)->validation_loss_after}});
    }
    if (*prior) *last_.mutable_stored() = PriorToProto(**prior, (*prior)->model_digest);
    if (*prior) last_.set_index_generation(Generation());
    Send(last_);
    End(absl::OkStatus());
  }

  v1::TunePriorResponse last_;
};

class AmortizeReactor final : public LearningReactor {
 public:
  AmortizeReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
      : LearningReactor(context, parts, Metrics::Rpc::kReferencesAmortizeShifts) {}

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) override {
    C3PO_ASSIGN_OR_RETURN(const v1::AmortizeShiftsRequest request, ParseRequest<v1::AmortizeShiftsRequest>(bytes));
    v1::OptimizationOptions options = request.optimization();
    if (!request.collection().empty()) options.set_collection(request.collection());
    const std::string name = options.has_collection() ? options.collection() : parts_.profiles->defaults().collection;
    call().NoteCollection(name);
    C3PO_RETURN_IF_ERROR(call().collections().CheckWrite("collection", name));
    AmortizeRequest amortize;
    C3PO_ASSIGN_OR_RETURN(amortize.settings, parts_.profiles->Resolve(options, call().collections()));
    amortize.context = call().Context("");
    const auto self = std::static_pointer_cast<AmortizeReactor>(shared_from_this());
    return parts_.learning->Amortize(
        std::move(amortize),
        [self](const CollectionLearning::AmortizeProgress& progress) { self->OnProgress(progress); },
        [self](const absl::Status& status) { self->OnAmortized(status); });
  }

  // What was done before a failure is stored.
  void OnAmortized(const absl::Status& status) {
    const auto audit = [&] { call().Audit("amortize_shifts", {{"references", done_}}); };
    if (done_ > 0) (void)CatchEscapedIn(ThreadKind::kWorker, audit);  // The call ends all the same.
    End(status);
  }

  void OnProgress(const CollectionLearning::AmortizeProgress& progress) {
    done_ = progress.done;
    v1::AmortizeShiftsResponse message;
    message.set_done(static_cast<uint64_t>(progress.done));
    message.set_skipped(static_cast<uint64_t>(progress.skipped));
    message.set_total(static_cast<uint64_t>(progress.total));
    message.set_index_generation(Generation());
    Send(message);
  }

  int64_t done_ = 0;
};

class TuneOffsetReactor final : public LearningReactor {
 public:
  TuneOffsetReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
      : LearningReactor(context, parts, Metrics::Rpc::kReferencesTuneOffset) {}

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) override {
    C3PO_ASSIGN_OR_RETURN(const v1::TuneOffsetRequest request, ParseRequest<v1::TuneOffsetRequest>(bytes));
    v1::OptimizationOptions options = request.optimization();
    if (!request.has_optimization()) options.set_method(v1::METHOD_NONE);
    if (!request.collection().empty()) options.set_collection(request.collection());
    const std::string name = options.has_collection() ? options.collection() : parts_.profiles->defaults().collection;
    call().NoteCollection(name);
    C3PO_RETURN_IF_ERROR(ValidateCollectionName(name));
    C3PO_RETURN_IF_ERROR(call().collections().CheckWrite("collection", name));
    OffsetRequest tune;
    C3PO_ASSIGN_OR_RETURN(tune.settings, parts_.profiles->Resolve(options, call().collections()));
    C3PO_RETURN_IF_ERROR(ToInt("max_references", request.max_references(), tune.max_references));
    tune.seed = request.seed();
    tune.keep = request.keep();
    tune.context = call().Context("");
    const auto self = std::static_pointer_cast<TuneOffsetReactor>(shared_from_this());
    return parts_.learning->TuneOffset(
        std::move(tune), [self](const OffsetTuner::Progress& progress) { self->OnProgress(progress); },
        [self](const absl::StatusOr<OffsetTuner::Outcome>& outcome) { self->OnTuned(outcome); });
  }

  void OnProgress(const OffsetTuner::Progress& progress) {
    last_.set_done(static_cast<uint64_t>(progress.done));
    last_.set_total(static_cast<uint64_t>(progress.total));
    Send(last_);
  }

  void OnTuned(const absl::StatusOr<OffsetTuner::Outcome>& outcome) {
    if (!outcome.ok()) return End(outcome.status(), /*drop_queue=*/true);
    const CollectionOffset& offset = *outcome->offset;
    if (outcome->stored) {
      call().Audit("tune_offset", {{"after", TermOf(offset.method).name},
                                   {"references", offset.references},
                                   {"accuracy_before", offset.accuracy_before},
                                   {"accuracy_after", offset.accuracy_after}});
    }
    *last_.mutable_stored() = OffsetToProto(offset, /*usable=*/true);
    last_.set_index_generation(Generation());
    Send(last_);
    End(absl::OkStatus());
  }

  v1::TuneOffsetResponse last_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartTunePrior(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer& request, const ServiceParts& parts) {
  return LearningReactor::Start(std::make_shared<TunePriorReactor>(context, parts), request);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartAmortizeShifts(grpc::CallbackServerContext* context,
                                                                const grpc::ByteBuffer& request,
                                                                const ServiceParts& parts) {
  return LearningReactor::Start(std::make_shared<AmortizeReactor>(context, parts), request);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartTuneOffset(grpc::CallbackServerContext* context,
                                                            const grpc::ByteBuffer& request,
                                                            const ServiceParts& parts) {
  return LearningReactor::Start(std::make_shared<TuneOffsetReactor>(context, parts), request);
}

}  // namespace c3po
