#include "client/c3po_client.h"

#include <arpa/inet.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "c3po/v1/generation.grpc.pb.h"
#include "c3po/v1/reference.grpc.pb.h"
#include "c3po/v1/server.grpc.pb.h"
#include "client/error_details.h"
#include "client/reference_import.h"
#include "client/request_text.h"
#include "client/retrying_call.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int kReceivedBytesMax = 64 << 20;

// The two messages of grpc.health.v1 hold one field each, and the empty request means the whole server; an empty
// message that keeps unknown fields reads them.
using HealthStub = grpc::TemplatedGenericStub<google::protobuf::Empty, google::protobuf::Empty>;
constexpr int kHealthStatusField = 1;
constexpr uint64_t kServing = 1;

uint64_t ServingStatusOf(const google::protobuf::Empty& response) {
  const google::protobuf::UnknownFieldSet& fields = response.GetReflection()->GetUnknownFields(response);
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::UnknownField& field = fields.field(i);
    if (field.number() == kHealthStatusField && field.type() == google::protobuf::UnknownField::TYPE_VARINT) {
      return field.varint();
    }
  }
  return 0;
}

absl::string_view ServingStatusName(uint64_t serving_status) {
  switch (serving_status) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "UNKNOWN";
  }
}

grpc::ChannelArguments ArgumentsFor(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kReceivedBytesMax);
  // A server that is just starting should be found soon after it listens; gRPC's own first pause is a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // The retries are this client's own, so that they are counted, bounded and reported in one place.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  if (IsThisMachine(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

absl::Status ReadInto(const std::string& path, std::string* content) {
  if (path.empty()) return absl::OkStatus();
  std::ifstream file(path, std::ios::binary);
  content->assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  if (!file || content->empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read, or is empty"));
  return absl::OkStatus();
}

}  // namespace

bool IsThisMachine(absl::string_view address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) return true;
  if (absl::StartsWith(address, "[")) return absl::StartsWith(address, "[::1]");
  const std::string host(address.substr(0, address.find(':')));
  in_addr number;
  const bool is_number = inet_pton(AF_INET, host.c_str(), &number) == 1;  // A host's name may begin with 127 as well.
  return host == "localhost" || (is_number && absl::StartsWith(host, "127."));
}

std::shared_ptr<grpc::Channel> InsecureChannel(const std::string& address) {
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), ArgumentsFor(address));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> TlsChannel(const std::string& address, const TlsFiles& files) {
  if (files.cert.empty() != files.key.empty())
    return absl::InvalidArgumentError(
        absl::StrCat(files.cert.empty() ? files.key : files.cert, ": a client's certificate and its key go together"));
  grpc::SslCredentialsOptions options;
  C3PO_RETURN_IF_ERROR(ReadInto(files.ca, &options.pem_root_certs));
  C3PO_RETURN_IF_ERROR(ReadInto(files.cert, &options.pem_cert_chain));
  C3PO_RETURN_IF_ERROR(ReadInto(files.key, &options.pem_private_key));
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(options), ArgumentsFor(address));
}

struct Client::Impl {
  Impl(std::shared_ptr<grpc::Channel> shared_channel, const ClientOptions& options)
      : channel(std::move(shared_channel)),
        generation(v1::GenerationService::NewStub(channel)),
        reference(v1::ReferenceService::NewStub(channel)),
        server(v1::ServerService::NewStub(channel)),
        health(channel),
        retrying(options) {}

  // One request, one response.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Unary(Stub& stub,
                                 grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                 const Request& request, const CallOptions& options) {
    C3PO_RETURN_IF_ERROR(CheckText(request));
    Response response;
    C3PO_RETURN_IF_ERROR(retrying.Run(options, [&](grpc::ClientContext* context, bool*) {
      response.Clear();
      return (stub.*method)(context, request, &response);
    }));
    return response;
  }

  // One request, a stream of responses.
  template <typename Stub, typename Request, typename Response>
  absl::Status Stream(
      Stub& stub, std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&),
      const Request& request, absl::FunctionRef<bool(const Response&)> on_event, const CallOptions& options) {
    C3PO_RETURN_IF_ERROR(CheckText(request));
    return retrying.Run(options, [&](grpc::ClientContext* context, bool* received) {
      auto stream = (stub.*method)(context, request);
      Response event;
      bool wanted = true;
      while (wanted && stream->Read(&event)) {
        *received = true;
        wanted = on_event(event);
      }
      if (wanted) return stream->Finish();
      context->TryCancel();
      stream->Finish();  // Waits until the call is over; what it says no longer matters.
      return grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the caller");
    });
  }

  // One health check of the whole server.
  grpc::Status CheckHealth(grpc::ClientContext* context, uint64_t* serving_status) {
    grpc::CompletionQueue queue;
    google::protobuf::Empty response;
    grpc::Status status;
    auto call = health.PrepareUnaryCall(context, "/grpc.health.v1.Health/Check", google::protobuf::Empty(), &queue);
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
    *serving_status = ServingStatusOf(response);
    return status;
  }

  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::GenerationService::Stub> generation;
  const std::unique_ptr<v1::ReferenceService::Stub> reference;
  const std::unique_ptr<v1::ServerService::Stub> server;
  HealthStub health;
  RetryingCall retrying;
};

Client::Client(std::shared_ptr<grpc::Channel> channel, ClientOptions options)
    : impl_(std::make_unique<Impl>(std::move(channel), options)) {}

Client::~Client() = default;

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              absl::FunctionRef<bool(const v1::GenerateResponse&)> on_event,
                              const CallOptions& options) {
  return impl_->Stream(*impl_->generation, &v1::GenerationService::Stub::Generate, request, on_event, options);
}

absl::StatusOr<v1::ScoreResponse> Client::Score(const v1::ScoreRequest& request, const CallOptions& options) {
  return impl_->Unary(*impl_->generation, &v1::GenerationService::Stub::Score, request, options);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request, const CallOptions& options) {
  return impl_->Unary(*impl_->generation, &v1::GenerationService::Stub::Tokenize, request, options);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request,
                                                          const CallOptions& options) {
  return impl_->Unary(*impl_->generation, &v1::GenerationService::Stub::Detokenize, request, options);
}

absl::Status Client::AddReferences(absl::string_view collection,
                                   absl::FunctionRef<absl::StatusOr<std::optional<NumberedSample>>()> next_sample,
                                   absl::FunctionRef<bool(const v1::AddReferencesResponse&)> on_response,
                                   const ImportOptions& import, const CallOptions& options) {
  ReferenceImport state(collection, next_sample, on_response, import);
  C3PO_RETURN_IF_ERROR(CheckText(state.first_request()));
  C3PO_RETURN_IF_ERROR(impl_->retrying.Run(options, [&](grpc::ClientContext* context, bool* received) {
    return state.RunAttempt(*impl_->reference, context, received);
  }));
  return state.Outcome();
}

absl::StatusOr<v1::SearchReferencesResponse> Client::SearchReferences(const v1::SearchReferencesRequest& request,
                                                                      const CallOptions& options) {
  const absl::Time deadline = impl_->retrying.clock().Now() + options.timeout;
  v1::SearchReferencesRequest page_request = request;
  v1::SearchReferencesResponse all;
  while (true) {
    CallOptions page_options = options;
    page_options.timeout = deadline - impl_->retrying.clock().Now();
    C3PO_ASSIGN_OR_RETURN(
        v1::SearchReferencesResponse page,
        impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::Search, page_request, page_options));
    // All hits are of a state of at least the least generation.
    all.set_index_generation(all.hits().empty() ? page.index_generation()
                                                : std::min(all.index_generation(), page.index_generation()));
    for (auto& hit : *page.mutable_hits()) *all.add_hits() = std::move(hit);
    if (page.next_page_token().empty()) return all;
    if (page.hits().empty() || page.next_page_token() == page_request.page_token()) {
      return absl::InternalError(absl::StrCat("the server gave page token ", page.next_page_token(), " twice"));
    }
    page_request.set_page_token(page.next_page_token());
  }
}

absl::StatusOr<v1::ListReferencesResponse> Client::ListReferences(const v1::ListReferencesRequest& request,
                                                                  const CallOptions& options) {
  return impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::List, request, options);
}

absl::Status Client::ForEachReference(v1::ListReferencesRequest request,
                                      absl::FunctionRef<bool(const v1::Reference&)> on_reference,
                                      const CallOptions& options) {
  const absl::Time deadline = impl_->retrying.clock().Now() + options.timeout;
  while (true) {
    CallOptions page_options = options;
    page_options.timeout = deadline - impl_->retrying.clock().Now();
    C3PO_ASSIGN_OR_RETURN(const v1::ListReferencesResponse page, ListReferences(request, page_options));
    for (const v1::Reference& reference : page.references()) {
      if (!on_reference(reference)) return absl::OkStatus();
    }
    if (page.next_page_token().empty()) return absl::OkStatus();
    if (page.next_page_token() == request.page_token()) {
      return absl::InternalError(absl::StrCat("the server gave page token ", page.next_page_token(), " twice"));
    }
    request.set_page_token(page.next_page_token());
  }
}

absl::StatusOr<v1::GetReferenceResponse> Client::GetReference(const v1::GetReferenceRequest& request,
                                                              const CallOptions& options) {
  return impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::Get, request, options);
}

absl::StatusOr<v1::DeleteReferencesResponse> Client::DeleteReferences(const v1::DeleteReferencesRequest& request,
                                                                      const CallOptions& options) {
  return impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::Delete, request, options);
}

absl::StatusOr<v1::GetStatsResponse> Client::GetStats(const CallOptions& options) {
  v1::GetStatsResponse all;
  v1::GetStatsRequest request;
  do {
    C3PO_ASSIGN_OR_RETURN(v1::GetStatsResponse page,
                          impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::GetStats, request, options));
    if (page.next_page_token() == request.page_token()) page.clear_next_page_token();  // No way on: the end.
    request.set_page_token(page.next_page_token());
    all.MergeFrom(page);
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  return all;
}

absl::StatusOr<v1::GetServerInfoResponse> Client::GetServerInfo(const CallOptions& options) {
  return impl_->Unary(*impl_->server, &v1::ServerService::Stub::GetServerInfo, v1::GetServerInfoRequest(), options);
}

absl::StatusOr<v1::GetCollectionResponse> Client::GetCollection(const v1::GetCollectionRequest& request,
                                                                const CallOptions& options) {
  return impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::GetCollection, request, options);
}

absl::StatusOr<v1::SetProfileResponse> Client::SetProfile(const v1::SetProfileRequest& request,
                                                          const CallOptions& options) {
  return impl_->Unary(*impl_->reference, &v1::ReferenceService::Stub::SetProfile, request, options);
}

absl::Status Client::TunePrior(const v1::TunePriorRequest& request,
                               absl::FunctionRef<bool(const v1::TunePriorResponse&)> on_event,
                               const CallOptions& options) {
  return impl_->Stream(*impl_->reference, &v1::ReferenceService::Stub::TunePrior, request, on_event, options);
}

absl::Status Client::AmortizeShifts(const v1::AmortizeShiftsRequest& request,
                                    absl::FunctionRef<bool(const v1::AmortizeShiftsResponse&)> on_event,
                                    const CallOptions& options) {
  return impl_->Stream(*impl_->reference, &v1::ReferenceService::Stub::AmortizeShifts, request, on_event, options);
}

absl::Status Client::TuneOffset(const v1::TuneOffsetRequest& request,
                                absl::FunctionRef<bool(const v1::TuneOffsetResponse&)> on_event,
                                const CallOptions& options) {
  return impl_->Stream(*impl_->reference, &v1::ReferenceService::Stub::TuneOffset, request, on_event, options);
}

absl::Status Client::BackupStore(const v1::BackupStoreRequest& request,
                                 absl::FunctionRef<bool(const v1::BackupStoreResponse&)> on_event,
                                 const CallOptions& options) {
  return impl_->Stream(*impl_->reference, &v1::ReferenceService::Stub::BackupStore, request, on_event, options);
}

absl::Status Client::WaitUntilServing(absl::Duration timeout, Cancellation* cancellation) {
  constexpr absl::Duration kCheckTimeout = absl::Seconds(5);
  constexpr absl::Duration kPause = absl::Milliseconds(100);
  RetryClock& clock = impl_->retrying.clock();
  const absl::Time deadline = clock.Now() + timeout;
  std::string last;
  while (true) {
    uint64_t serving_status = 0;
    grpc::Status status;
    {
      grpc::ClientContext context;
      SetDeadline(std::min(kCheckTimeout, deadline - clock.Now()), &context);
      Cancellation::Attachment attachment(cancellation, &context);
      status = impl_->CheckHealth(&context, &serving_status);
    }
    if (cancellation != nullptr && cancellation->cancelled()) return absl::CancelledError("cancelled by the caller");
    if (status.ok() && serving_status == kServing) return absl::OkStatus();
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) return FoldStatus(status);
    if (status.ok()) {
      last = absl::StrCat("it says ", ServingStatusName(serving_status));
    } else if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED || last.empty()) {
      // The last question may have next to no time, so that it is not answered says nothing of the server.
      last = FoldStatus(status).ToString();
    }
    if (clock.Now() + kPause >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the server is not serving after ", absl::FormatDuration(timeout), ": ", last));
    }
    clock.Sleep(kPause, cancellation);
  }
}

}  // namespace c3po
