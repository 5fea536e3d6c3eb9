#ifndef C3PO_TESTS_CLIENT_FAKE_SERVER_H_
#define C3PO_TESTS_CLIENT_FAKE_SERVER_H_

#include <grpcpp/server.h>
#include <grpcpp/server_context.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "c3po/v1/generation.grpc.pb.h"
#include "c3po/v1/reference.grpc.pb.h"
#include "c3po/v1/server.grpc.pb.h"

namespace c3po {

// Errors as the server makes them.
grpc::Status BadField(const std::string& field, const std::string& description);
grpc::Status Overloaded(absl::Duration retry_delay);

// All services of c3po.v1 in this process, on a free loopback port, with the health service. Every call is handled by
// the default below unless the test puts its own handler in place before the call. Requests are recorded.
class FakeServer {
 public:
  using ImportStream = grpc::ServerReaderWriter<v1::AddReferencesResponse, v1::AddReferencesRequest>;

  FakeServer();
  ~FakeServer();

  std::string address() const;
  void SetServing(bool serving);
  // Ends every call and waits for its handler: what a test's own handler refers to may go after it. The destructor does
  // it too.
  void Stop();

  std::vector<v1::GenerateRequest> generate_requests() const;
  std::vector<v1::ScoreRequest> score_requests() const;
  std::vector<v1::AddReferencesRequest> add_requests() const;
  std::vector<v1::DeleteReferencesRequest> delete_requests() const;
  std::vector<v1::SearchReferencesRequest> search_requests() const;
  std::vector<v1::SetProfileRequest> profile_requests() const;
  std::vector<v1::TunePriorRequest> tune_requests() const;
  std::vector<v1::AmortizeShiftsRequest> amortize_requests() const;
  std::vector<v1::TuneOffsetRequest> offset_requests() const;
  // How many times a method was called.
  int info_calls() const;

  // Default: an optimization report of two neighbors (none for METHOD_NONE), "Hello", " world", a summary.
  std::function<grpc::Status(grpc::ServerContext*, const v1::GenerateRequest&,
                             grpc::ServerWriter<v1::GenerateResponse>*)>
      on_generate;
  // Default: a continuation's log-likelihood is minus the number of its letters "e" plus one.
  std::function<grpc::Status(grpc::ServerContext*, const v1::ScoreRequest&, v1::ScoreResponse*)> on_score;
  // Default: a response per sample; prompt "duplicate", "bad" and "wrong" decide its verdict, "relabelled" contradicts
  // or replaces the reference "old", "bare" is warned about.
  std::function<grpc::Status(grpc::ServerContext*, ImportStream*)> on_add;
  // Default: 5 references "ref-0" to "ref-4" in pages.
  std::function<grpc::Status(grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse*)>
      on_list;
  std::function<grpc::Status(grpc::ServerContext*, v1::GetServerInfoResponse*)> on_info;
  // Default: one hit, "ref-0".
  std::function<grpc::Status(grpc::ServerContext*, const v1::SearchReferencesRequest&, v1::SearchReferencesResponse*)>
      on_search;
  // Called first; what it returns other than OK is the answer. Default: an offset of " a" and " the" follows.
  std::function<grpc::Status(const v1::TuneOffsetRequest&)> on_tune_offset;
  // Default: UNIMPLEMENTED.
  bool stats_have_a_second_page = false;  // of GetStats: a collection that has a profile and no references
  std::function<grpc::Status(grpc::ServerContext*, grpc::ServerWriter<v1::BackupStoreResponse>*)> on_backup;

 private:
  class Generation;
  class References;
  class Info;

  mutable absl::Mutex mu_;
  std::vector<v1::GenerateRequest> generate_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::ScoreRequest> score_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::AddReferencesRequest> add_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::DeleteReferencesRequest> delete_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::SearchReferencesRequest> search_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::SetProfileRequest> profile_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::TunePriorRequest> tune_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::AmortizeShiftsRequest> amortize_requests_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::TuneOffsetRequest> offset_requests_ ABSL_GUARDED_BY(mu_);
  int info_calls_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<Generation> generation_;
  std::unique_ptr<References> references_;
  std::unique_ptr<Info> info_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_CLIENT_FAKE_SERVER_H_
