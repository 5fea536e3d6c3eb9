#ifndef C3PO_CLIENT_EVAL_EFFECTIVE_SETTINGS_H_
#define C3PO_CLIENT_EVAL_EFFECTIVE_SETTINGS_H_

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "c3po/v1/options.pb.h"
#include "client/c3po_client.h"

namespace c3po {

// Settings as the server would take them, for what this client does itself: the neighbors of a baseline must be those
// that an optimizing request over the same collection gets. Each collection is asked for once. Thread-safe.
class EffectiveSettings {
 public:
  // `client` is not owned and outlives this object. `defaults`: the server's, GetServerInfoResponse's.
  EffectiveSettings(Client* client, CallOptions call_options, v1::OptimizationOptions defaults)
      : client_(*client), call_options_(call_options), defaults_(std::move(defaults)) {}

  // What a request gets that sets nothing: the collection's profile over the server's defaults. Errors are the
  // server's.
  absl::StatusOr<v1::OptimizationOptions> Of(const std::string& collection);

  // What a request with `options` gets: their fields over those of Of(collection), or, where they say
  // use_profile = false, over the server's defaults. Of a preset the fields are filled that say which neighbors and how
  // they weigh.
  absl::StatusOr<v1::OptimizationOptions> Resolve(const v1::OptimizationOptions& options,
                                                  const std::string& collection);

 private:
  Client& client_;
  const CallOptions call_options_;
  const v1::OptimizationOptions defaults_;
  absl::Mutex mu_;
  std::map<std::string, v1::OptimizationOptions> known_ ABSL_GUARDED_BY(mu_);  // by collection
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_EFFECTIVE_SETTINGS_H_
