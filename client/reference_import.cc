#include "client/reference_import.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/request_text.h"
#include "index/base/escaped_exception.h"

namespace c3po {

// Reads a stream to its end on a thread of its own. The queue is bounded by the window: a server answers what it was
// sent.
class ReferenceImport::Reader {
 public:
  using Stream = grpc::ClientReaderWriter<v1::AddReferencesRequest, v1::AddReferencesResponse>;

  // An exception of the thread, such as for want of memory, ends the call.
  Reader(Stream* stream, grpc::ClientContext* context)
      : thread_([this, stream, context] {
          if (!CatchEscapedIn(ThreadKind::kWorker, [&] { ReadAll(stream); }).ok()) context->TryCancel();
          absl::MutexLock lock(&mu_);
          ended_ = true;
        }) {}
  ~Reader() { thread_.join(); }

  // What has been read since the last call, without waiting. *ended: nothing will follow.
  std::vector<v1::AddReferencesResponse> Take(bool* ended) {
    absl::MutexLock lock(&mu_);
    *ended = ended_;
    return std::exchange(responses_, {});
  }

  void WaitForNews() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](Reader* reader) ABSL_NO_THREAD_SAFETY_ANALYSIS { return reader->ended_ || !reader->responses_.empty(); },
        this));
  }

 private:
  void ReadAll(Stream* stream) {
    v1::AddReferencesResponse response;
    while (stream->Read(&response)) {
      absl::MutexLock lock(&mu_);
      responses_.push_back(std::move(response));
    }
  }

  absl::Mutex mu_;
  std::vector<v1::AddReferencesResponse> responses_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // Last: it starts when everything above is there.
};

ReferenceImport::ReferenceImport(absl::string_view collection, Source next_sample, Sink on_response,
                                 const ImportOptions& options)
    : collection_(collection),
      next_sample_(next_sample),
      on_response_(on_response),
      window_max_(std::max<size_t>(options.window_max, 1)),
      replace_(options.replace) {}

v1::AddReferencesRequest ReferenceImport::first_request() const {
  v1::AddReferencesRequest request;
  request.set_collection(collection_);
  if (replace_) request.set_replace(true);
  return request;
}

bool ReferenceImport::TakeFromSource() {
  absl::StatusOr<std::optional<NumberedSample>> next = next_sample_();
  if (next.ok() && next->has_value()) {
    NumberedSample& numbered = **next;
    if (last_sequence_ && numbered.sequence <= *last_sequence_) {
      source_status_ = absl::InvalidArgumentError(
          absl::StrCat("sample ", numbered.sequence, " after sample ", *last_sequence_, ": sequences must rise"));
    } else if (absl::Status text = CheckText(numbered.sample); !text.ok()) {
      source_status_ = absl::InvalidArgumentError(absl::StrCat("sample ", numbered.sequence, ": ", text.message()));
    } else {
      last_sequence_ = numbered.sequence;
      unacknowledged_.emplace(numbered.sequence, std::move(numbered.sample));
      return true;
    }
  } else {
    source_status_ = next.status();
  }
  source_ended_ = true;
  return false;
}

bool ReferenceImport::Deliver(const std::vector<v1::AddReferencesResponse>& responses) {
  for (const v1::AddReferencesResponse& response : responses) {
    for (const v1::SampleVerdict& verdict : response.verdicts()) unacknowledged_.erase(verdict.sequence());
    if (!on_response_(response)) return false;
  }
  return true;
}

grpc::Status ReferenceImport::RunAttempt(v1::ReferenceService::Stub& stub, grpc::ClientContext* context,
                                         bool* received) {
  const auto stream = stub.Add(context);
  bool wanted = true;
  {
    Reader reader(stream.get(), context);
    v1::AddReferencesRequest request = first_request();
    std::optional<uint64_t> sent_through;  // A number, as a server may give a verdict on a sample not yet sent again.
    bool half_closed = false;
    while (true) {
      bool ended = false;
      const std::vector<v1::AddReferencesResponse> responses = reader.Take(&ended);
      *received = *received || !responses.empty();
      if (wanted && !Deliver(responses)) {
        wanted = false;
        context->TryCancel();
      }
      if (ended) break;
      const bool may_send = wanted && !half_closed;
      auto unsent = sent_through ? unacknowledged_.upper_bound(*sent_through) : unacknowledged_.begin();
      if (may_send && unsent == unacknowledged_.end() && !source_ended_ && unacknowledged_.size() < window_max_ &&
          TakeFromSource()) {
        unsent = std::prev(unacknowledged_.end());
      }
      if (may_send && unsent != unacknowledged_.end()) {
        request.set_sequence(unsent->first);
        *request.mutable_sample() = unsent->second;
        sent_through = unsent->first;
        // A failed write means that the call has ended; the reader will see it.
        if (!stream->Write(request)) half_closed = true;
        request.clear_collection();
        request.clear_replace();
      } else if (may_send && source_ended_) {
        stream->WritesDone();
        half_closed = true;
      } else {
        reader.WaitForNews();
      }
    }
  }
  const grpc::Status status = stream->Finish();
  return wanted ? status : grpc::Status(grpc::StatusCode::CANCELLED, "cancelled by the caller");
}

absl::Status ReferenceImport::Outcome() const {
  if (!source_status_.ok()) return source_status_;
  if (unacknowledged_.empty()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the server ended the import and left ", unacknowledged_.size(),
                                          " samples without a verdict, the first being number ",
                                          unacknowledged_.begin()->first));
}

}  // namespace c3po
