#include "tests/client/fake_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace c3po {
namespace {

grpc::Status WithDetails(grpc::StatusCode code, const std::string& message,
                         const std::vector<const google::protobuf::Message*>& details) {
  google::rpc::Status rich;
  rich.set_code(code);
  rich.set_message(message);
  for (const google::protobuf::Message* detail : details) rich.add_details()->PackFrom(*detail);
  return grpc::Status(code, message, rich.SerializeAsString());
}

v1::OptimizationReport SampleReport(const v1::OptimizationOptions& options) {
  v1::OptimizationReport report;
  if (options.method() == v1::METHOD_NONE) {
    report.set_method(v1::METHOD_NONE);
    report.set_gate(v1::GATE_DECISION_NOT_REQUESTED);
    return report;
  }
  report.set_method(options.has_method() ? options.method() : v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  report.set_gate(v1::GATE_DECISION_APPLIED);
  report.set_collection(options.has_collection() ? options.collection() : "default");
  for (int i = 0; i < 2; ++i) {
    v1::NeighborInfo& neighbor = *report.add_neighbors();
    neighbor.set_reference_id(absl::StrCat("ref-", i));
    neighbor.set_distance(0.25 + 0.125 * i);
    neighbor.set_kernel_weight(i == 0 ? 0.625 : 0.375);
    neighbor.set_prompt(absl::StrCat("Question: neighbor ", i, "?\nAnswer:"));
    neighbor.set_answer(" yes");
    neighbor.set_successful(i == 0);
  }
  for (const double loss : {0.8, 0.5, 0.2}) report.add_losses(loss);
  v1::ExpertChange& change = *report.add_largest_changes();
  change.set_layer(27);
  change.set_expert(13);
  change.set_before(0.03125F);
  change.set_after(0.0625F);
  for (const int layer : {25, 26, 27}) report.add_critical_layers(layer);
  report.set_core_experts(20);
  report.set_application_rule(v1::APPLICATION_RULE_EVERY_NEW_TOKEN);
  report.mutable_timings()->set_retrieval_seconds(0.0021);
  report.mutable_timings()->set_optimization_seconds(0.04);
  return report;
}

grpc::Status GenerateByDefault(const v1::GenerateRequest& request, grpc::ServerWriter<v1::GenerateResponse>* writer) {
  if (request.optimization().neighborhood_case() == v1::OptimizationOptions::kK && request.optimization().k() == 0) {
    return BadField("optimization.k", "must be at least 1");
  }
  v1::GenerateResponse event;
  *event.mutable_optimization() = SampleReport(request.optimization());
  writer->Write(event);
  for (const char* text : {"Hello", " world"}) {
    event.mutable_delta()->Clear();
    event.mutable_delta()->set_text(text);
    event.mutable_delta()->add_token_ids(7);
    writer->Write(event);
  }
  v1::GenerationSummary& summary = *event.mutable_summary();
  summary.set_request_id(request.request_id());
  summary.set_finish_reason(v1::FINISH_REASON_STOP);
  summary.mutable_usage()->set_prompt_tokens(3);
  summary.mutable_usage()->set_completion_tokens(2);
  summary.mutable_timings()->set_decode_seconds(0.5);
  summary.mutable_provenance()->set_effective_seed(42);
  writer->Write(event);
  return grpc::Status::OK;
}

grpc::Status AddByDefault(FakeServer::ImportStream* stream,
                          const std::function<void(v1::AddReferencesRequest)>& record) {
  v1::AddReferencesRequest request;
  v1::AddProgress progress;
  bool replace = false;
  while (stream->Read(&request)) {
    replace = replace || request.replace();
    record(request);
    v1::AddReferencesResponse response;
    v1::SampleVerdict& verdict = *response.add_verdicts();
    verdict.set_sequence(request.sequence());
    verdict.set_id(absl::StrCat("id-", request.sequence()));
    progress.set_received(progress.received() + 1);
    const std::string& prompt = request.sample().prompt();
    verdict.set_verdict(v1::VERDICT_SUCCESSFUL);
    if (prompt == "duplicate") verdict.set_verdict(v1::VERDICT_DUPLICATE);
    if (prompt == "wrong") verdict.set_verdict(v1::VERDICT_FAILED);
    if (prompt == "bad") {
      verdict.set_verdict(v1::VERDICT_MALFORMED);
      verdict.set_message("prompt: longer than the context window");
    }
    if (prompt == "relabelled") *(replace ? verdict.add_replaced_ids() : verdict.add_contradicted_ids()) = "old";
    if (prompt == "bare") verdict.set_warning("choices begin without white space, \" yes\" here");
    *response.mutable_progress() = progress;
    if (!stream->Write(response)) break;
  }
  return grpc::Status::OK;
}

}  // namespace

grpc::Status BadField(const std::string& field, const std::string& description) {
  google::rpc::BadRequest bad_request;
  google::rpc::BadRequest::FieldViolation& violation = *bad_request.add_field_violations();
  violation.set_field(field);
  violation.set_description(description);
  google::rpc::ErrorInfo info;
  info.set_reason("INVALID_FIELD");
  return WithDetails(grpc::StatusCode::INVALID_ARGUMENT, absl::StrCat(field, ": ", description), {&bad_request, &info});
}

grpc::Status Overloaded(absl::Duration retry_delay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(retry_delay));
  retry.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(retry_delay % absl::Seconds(1))));
  google::rpc::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  return WithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", {&retry, &info});
}

class FakeServer::Generation : public v1::GenerationService::Service {
 public:
  explicit Generation(FakeServer* fake) : fake_(*fake) {}
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.generate_requests_.push_back(*request);
    }
    return fake_.on_generate ? fake_.on_generate(context, *request, writer) : GenerateByDefault(*request, writer);
  }
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.score_requests_.push_back(*request);
    }
    if (fake_.on_score) return fake_.on_score(context, *request, response);
    for (const std::string& continuation : request->continuations()) {
      v1::ContinuationScore& score = *response->add_scores();
      score.set_log_likelihood(-1.0 - std::count(continuation.begin(), continuation.end(), 'e'));
      score.set_token_count(1);
      score.set_is_greedy(score.log_likelihood() == -1.0);
    }
    *response->mutable_optimization() = SampleReport(request->optimization());
    return grpc::Status::OK;
  }
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    for (const char c : request->text()) {
      response->add_ids(static_cast<unsigned char>(c));
      response->add_pieces(std::string(1, c));
    }
    return grpc::Status::OK;
  }
  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const uint32_t id : request->ids()) response->mutable_text()->push_back(static_cast<char>(id));
    return grpc::Status::OK;
  }

 private:
  FakeServer& fake_;
};

class FakeServer::References : public v1::ReferenceService::Service {
 public:
  explicit References(FakeServer* fake) : fake_(*fake) {}
  grpc::Status Add(grpc::ServerContext* context, ImportStream* stream) override {
    if (fake_.on_add) return fake_.on_add(context, stream);
    return AddByDefault(stream, [this](v1::AddReferencesRequest request) {
      absl::MutexLock lock(&fake_.mu_);
      fake_.add_requests_.push_back(std::move(request));
    });
  }
  grpc::Status Search(grpc::ServerContext* context, const v1::SearchReferencesRequest* request,
                      v1::SearchReferencesResponse* response) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.search_requests_.push_back(*request);
    }
    if (fake_.on_search) return fake_.on_search(context, *request, response);
    v1::SearchReferencesResponse::Hit& hit = *response->add_hits();
    hit.set_distance(0.5);
    hit.mutable_reference()->set_id("ref-0");
    hit.mutable_reference()->mutable_sample()->set_prompt("Question: near?");
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetReferenceRequest* request,
                   v1::GetReferenceResponse* response) override {
    if (request->id() != "ref-0") {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("id: no reference ", request->id()));
    }
    response->mutable_reference()->set_id("ref-0");
    response->mutable_reference()->mutable_sample()->set_prompt("Question: near?");
    return grpc::Status::OK;
  }
  grpc::Status List(grpc::ServerContext* context, const v1::ListReferencesRequest* request,
                    v1::ListReferencesResponse* response) override {
    if (fake_.on_list) return fake_.on_list(context, *request, response);
    constexpr int kReferences = 5;
    const int from = request->page_token().empty() ? 0 : std::stoi(request->page_token());
    const int to = std::min<int>(kReferences, from + static_cast<int>(request->page_size()));
    for (int i = from; i < to; ++i) {
      v1::Reference& reference = *response->add_references();
      reference.set_id(absl::StrCat("ref-", i));
      reference.mutable_sample()->set_prompt(absl::StrCat("prompt ", i));
      reference.mutable_sample()->set_answer(" yes");
    }
    if (to < kReferences) response->set_next_page_token(absl::StrCat(to));
    return grpc::Status::OK;
  }
  grpc::Status Delete(grpc::ServerContext*, const v1::DeleteReferencesRequest* request,
                      v1::DeleteReferencesResponse* response) override {
    absl::MutexLock lock(&fake_.mu_);
    fake_.delete_requests_.push_back(*request);
    for (const std::string& id : request->ids()) {
      if (id == "gone") response->add_not_found(id);
    }
    response->set_deleted(static_cast<uint64_t>(request->ids_size() - response->not_found_size()));
    if (request->collection() == "science") response->set_deleted(300);
    return grpc::Status::OK;
  }
  // A collection with a profile, a prior and no amortized shifts. The prior of "tuned" was not fitted to ref-0 to
  // ref-11.
  grpc::Status GetCollection(grpc::ServerContext*, const v1::GetCollectionRequest* request,
                             v1::GetCollectionResponse* response) override {
    response->mutable_stats()->set_collection(request->collection());
    response->mutable_stats()->set_references(300);
    if (request->collection() != "new") {
      response->mutable_profile()->set_k(12);
      response->mutable_profile()->set_reference_selection(v1::REFERENCE_SELECTION_ALL);
    }
    *response->mutable_effective_optimization() = response->profile();
    response->mutable_effective_optimization()->set_steps(10);
    if (request->collection() == "plain") response->mutable_effective_optimization()->set_method(v1::METHOD_NONE);
    response->set_profile_notes("{}");
    response->mutable_prior()->set_usable(true);
    for (const uint32_t layer : {25, 26, 27}) response->mutable_prior()->add_critical_layers(layer);
    for (int i = 0; i < 12 && request->collection() == "tuned"; ++i) {
      response->mutable_prior()->add_validation_reference_ids(absl::StrCat("ref-", i));
    }
    return grpc::Status::OK;
  }
  grpc::Status SetProfile(grpc::ServerContext*, const v1::SetProfileRequest* request,
                          v1::SetProfileResponse* response) override {
    absl::MutexLock lock(&fake_.mu_);
    fake_.profile_requests_.push_back(*request);
    response->set_removed(!request->has_profile() && request->collection() != "new");
    return grpc::Status::OK;
  }
  // Three epochs, then the outcome; nothing is stored over the collection "stubborn".
  grpc::Status TunePrior(grpc::ServerContext*, const v1::TunePriorRequest* request,
                         grpc::ServerWriter<v1::TunePriorResponse>* writer) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.tune_requests_.push_back(*request);
    }
    v1::TunePriorResponse event;
    for (uint32_t epoch = 0; epoch < 3; ++epoch) {
      event.set_epoch(epoch);
      if (epoch > 0) event.set_training_loss(0.75 - 0.125 * epoch);
      event.set_validation_loss(0.875 - 0.125 * epoch);
      event.set_validation_accuracy(0.5);
      writer->Write(event);
    }
    event.set_finished(true);
    if (request->collection() != "stubborn") {
      v1::PriorInfo& stored = *event.mutable_stored();
      for (const uint32_t layer : {27, 28, 29}) stored.add_critical_layers(layer);
      stored.set_references(240);
      stored.set_validation_references(60);
      stored.set_validation_loss_before(0.875);
      stored.set_validation_loss_after(0.625);
    }
    writer->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status AmortizeShifts(grpc::ServerContext*, const v1::AmortizeShiftsRequest* request,
                              grpc::ServerWriter<v1::AmortizeShiftsResponse>* writer) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.amortize_requests_.push_back(*request);
    }
    v1::AmortizeShiftsResponse event;
    event.set_total(300);
    event.set_skipped(100);
    for (const uint64_t done : {100, 200}) {
      event.set_done(done);
      writer->Write(event);
    }
    return grpc::Status::OK;
  }
  grpc::Status TuneOffset(grpc::ServerContext*, const v1::TuneOffsetRequest* request,
                          grpc::ServerWriter<v1::TuneOffsetResponse>* writer) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      fake_.offset_requests_.push_back(*request);
    }
    const grpc::Status status = fake_.on_tune_offset ? fake_.on_tune_offset(*request) : grpc::Status::OK;
    if (!status.ok()) return status;
    v1::TuneOffsetResponse event;
    event.set_total(80);
    for (const uint64_t done : {0, 40, 80}) {
      event.set_done(done);
      if (done == 80) {
        v1::OffsetInfo& stored = *event.mutable_stored();
        for (const char* label : {" a", " the"}) stored.add_labels(label);
        for (const double offset : {-0.25, 0.25}) stored.add_offsets(offset);
        stored.set_scale(1.5);
        stored.set_references(80);
        stored.set_method(v1::METHOD_NONE);
        stored.set_accuracy_before(0.5);
        stored.set_accuracy_after(0.75);
        stored.set_usable(true);
      }
      writer->Write(event);
    }
    return grpc::Status::OK;
  }
  grpc::Status BackupStore(grpc::ServerContext* context, const v1::BackupStoreRequest*,
                           grpc::ServerWriter<v1::BackupStoreResponse>* writer) override {
    if (fake_.on_backup) return fake_.on_backup(context, writer);
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no backup");
  }
  grpc::Status GetStats(grpc::ServerContext*, const v1::GetStatsRequest* request,
                        v1::GetStatsResponse* response) override {
    v1::CollectionStats& stats = *response->add_collections();
    if (request->page_token() == "science") {
      stats.set_collection("without-references");
      stats.set_profile(true);
      return grpc::Status::OK;
    }
    if (fake_.stats_have_a_second_page) response->set_next_page_token("science");
    stats.set_collection("science");
    stats.set_references(300);
    stats.set_successful(180);
    stats.set_usable(300);
    return grpc::Status::OK;
  }

 private:
  FakeServer& fake_;
};

class FakeServer::Info : public v1::ServerService::Service {
 public:
  explicit Info(FakeServer* fake) : fake_(*fake) {}
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    {
      absl::MutexLock lock(&fake_.mu_);
      ++fake_.info_calls_;
    }
    if (fake_.on_info) return fake_.on_info(context, response);
    response->set_version("0.1.0");
    response->mutable_model()->set_name("tiny");
    response->mutable_model()->set_layers(4);
    (*response->mutable_limits())["queue_depth_max"] = 256;
    return grpc::Status::OK;
  }

 private:
  FakeServer& fake_;
};

FakeServer::FakeServer()
    : generation_(std::make_unique<Generation>(this)),
      references_(std::make_unique<References>(this)),
      info_(std::make_unique<Info>(this)) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(generation_.get());
  builder.RegisterService(references_.get());
  builder.RegisterService(info_.get());
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() { Stop(); }

void FakeServer::Stop() { server_->Shutdown(std::chrono::system_clock::now()); }

std::string FakeServer::address() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeServer::SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }

std::vector<v1::GenerateRequest> FakeServer::generate_requests() const {
  absl::MutexLock lock(&mu_);
  return generate_requests_;
}

std::vector<v1::ScoreRequest> FakeServer::score_requests() const {
  absl::MutexLock lock(&mu_);
  return score_requests_;
}

std::vector<v1::AddReferencesRequest> FakeServer::add_requests() const {
  absl::MutexLock lock(&mu_);
  return add_requests_;
}

std::vector<v1::DeleteReferencesRequest> FakeServer::delete_requests() const {
  absl::MutexLock lock(&mu_);
  return delete_requests_;
}

std::vector<v1::SearchReferencesRequest> FakeServer::search_requests() const {
  absl::MutexLock lock(&mu_);
  return search_requests_;
}

std::vector<v1::SetProfileRequest> FakeServer::profile_requests() const {
  absl::MutexLock lock(&mu_);
  return profile_requests_;
}

std::vector<v1::TunePriorRequest> FakeServer::tune_requests() const {
  absl::MutexLock lock(&mu_);
  return tune_requests_;
}

std::vector<v1::AmortizeShiftsRequest> FakeServer::amortize_requests() const {
  absl::MutexLock lock(&mu_);
  return amortize_requests_;
}

std::vector<v1::TuneOffsetRequest> FakeServer::offset_requests() const {
  absl::MutexLock lock(&mu_);
  return offset_requests_;
}

int FakeServer::info_calls() const {
  absl::MutexLock lock(&mu_);
  return info_calls_;
}

}  // namespace c3po
