#include "server/rpc/otlp_sender.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>
#include <variant>

#include "index/base/mutex.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.grpc.pb.h"

namespace c3po {
namespace {

namespace otlp = opentelemetry::proto;
namespace collector = otlp::collector::trace::v1;

constexpr char kScope[] = "c3pod";
constexpr int kReconnectMilliseconds = 500, kReconnectMillisecondsMax = 10'000;

struct ToAnyValue {
  otlp::common::v1::AnyValue* const into;
  void operator()(bool value) const { into->set_bool_value(value); }
  void operator()(int64_t value) const { into->set_int_value(value); }
  void operator()(double value) const { into->set_double_value(value); }
  void operator()(const std::string& value) const { into->set_string_value(value); }
  void operator()(const std::vector<std::string>& values) const {
    otlp::common::v1::ArrayValue* array = into->mutable_array_value();
    for (const std::string& value : values) array->add_values()->set_string_value(value);
  }
};

template <typename Id>
std::string Bytes(const Id& id) {
  return std::string(reinterpret_cast<const char*>(id.data()), id.size());
}

void AddSpan(const Span& span, otlp::trace::v1::Span* into) {
  into->set_trace_id(Bytes(span.trace_id));
  into->set_span_id(Bytes(span.span_id));
  if (span.parent_id != SpanId()) into->set_parent_span_id(Bytes(span.parent_id));
  into->set_trace_state(span.trace_state);
  into->set_flags(span.flags);
  into->set_name(span.name);
  into->set_kind(span.kind == Span::Kind::kServer ? otlp::trace::v1::Span::SPAN_KIND_SERVER
                                                  : otlp::trace::v1::Span::SPAN_KIND_INTERNAL);
  into->set_start_time_unix_nano(static_cast<uint64_t>(span.begin_unix_nanoseconds));
  into->set_end_time_unix_nano(static_cast<uint64_t>(span.end_unix_nanoseconds));
  for (const SpanAttribute& attribute : span.attributes) {
    otlp::common::v1::KeyValue* pair = into->add_attributes();
    pair->set_key(std::string(attribute.key));
    std::visit(ToAnyValue{pair->mutable_value()}, attribute.value);
  }
  for (const SpanEvent& event : span.events) {
    otlp::trace::v1::Span::Event* told = into->add_events();
    told->set_name(std::string(event.name));
    told->set_time_unix_nano(static_cast<uint64_t>(event.unix_nanoseconds));
  }
  if (!span.failed) return;
  into->mutable_status()->set_code(otlp::trace::v1::Status::STATUS_CODE_ERROR);
  into->mutable_status()->set_message(span.failure);
}

// Zero: the collector does not say.
absl::Duration RetryDelayOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return absl::ZeroDuration();
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::RetryInfo retry;
    if (!detail.UnpackTo(&retry)) continue;
    return absl::Seconds(retry.retry_delay().seconds()) + absl::Nanoseconds(retry.retry_delay().nanos());
  }
  return absl::ZeroDuration();
}

SendOutcome OutcomeOf(const grpc::Status& status, int64_t rejected) {
  SendOutcome outcome;
  outcome.status = absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  outcome.rejected = rejected;
  outcome.retry_after = status.ok() ? absl::ZeroDuration() : RetryDelayOf(status);
  switch (status.error_code()) {
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DATA_LOSS:
      outcome.retry = true;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:  // Else it is the batch that is too large, and will be again.
      outcome.retry = outcome.retry_after > absl::ZeroDuration();
      break;
    default:
      break;
  }
  return outcome;
}

std::shared_ptr<grpc::ChannelCredentials> CredentialsOf(const OtlpSender::Options& options) {
  if (!options.endpoint.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = options.ca;
  return grpc::SslCredentials(tls);
}

std::shared_ptr<grpc::Channel> Connect(const OtlpSender::Options& options) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMilliseconds);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMillisecondsMax);
  if (options.endpoint.local) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // It is not behind a proxy.
  arguments.SetUserAgentPrefix(std::string(kScope) + "/" + options.version);
  return grpc::CreateCustomChannel(options.endpoint.target, CredentialsOf(options), arguments);
}

}  // namespace

struct OtlpSender::Connection {
  explicit Connection(const Options& options) : stub(Connect(options)) {}

  collector::TraceService::Stub stub;
  Mutex mutex;
  grpc::ClientContext* call ABSL_GUARDED_BY(mutex) = nullptr;  // that waits for its answer
  bool cancelled ABSL_GUARDED_BY(mutex) = false;
};

OtlpSender::OtlpSender(Options options)
    : options_(std::move(options)), connection_(std::make_unique<Connection>(options_)) {}

OtlpSender::~OtlpSender() = default;

SendOutcome OtlpSender::Send(const std::vector<Span>& batch, absl::Duration limit) {
  const collector::ExportTraceServiceRequest request = SpansToProto(batch, options_.resource, options_.version);
  grpc::ClientContext context;
  const gpr_timespec span = gpr_time_from_nanos(absl::ToInt64Nanoseconds(limit), GPR_TIMESPAN);
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), span));
  for (const auto& [name, value] : options_.headers) context.AddMetadata(name, value);
  {
    const MutexLock lock(connection_->mutex);
    if (connection_->cancelled) return {absl::CancelledError("the server stops")};
    connection_->call = &context;
  }
  collector::ExportTraceServiceResponse response;
  const grpc::Status status = connection_->stub.Export(&context, request, &response);
  const MutexLock lock(connection_->mutex);
  connection_->call = nullptr;
  return OutcomeOf(status, response.partial_success().rejected_spans());
}

void OtlpSender::Cancel() {
  const MutexLock lock(connection_->mutex);
  connection_->cancelled = true;
  if (connection_->call != nullptr) connection_->call->TryCancel();
}

collector::ExportTraceServiceRequest SpansToProto(const std::vector<Span>& batch, const NamedTexts& resource,
                                                  const std::string& version) {
  collector::ExportTraceServiceRequest request;
  otlp::trace::v1::ResourceSpans* all = request.add_resource_spans();
  for (const auto& [name, value] : resource) {
    otlp::common::v1::KeyValue* pair = all->mutable_resource()->add_attributes();
    pair->set_key(name);
    pair->mutable_value()->set_string_value(value);
  }
  otlp::trace::v1::ScopeSpans* scope = all->add_scope_spans();
  scope->mutable_scope()->set_name(kScope);
  scope->mutable_scope()->set_version(version);
  for (const Span& span : batch) AddSpan(span, scope->add_spans());
  return request;
}

}  // namespace c3po
