#ifndef C3PO_SERVER_ADMISSION_ACCESS_CONTROL_H_
#define C3PO_SERVER_ADMISSION_ACCESS_CONTROL_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/admission/collection_access.h"
#include "server/admission/grant.h"
#include "server/admission/rate_limiter.h"
#include "server/metrics/metrics.h"

namespace c3po {

// Each may do what those before it may.
enum class Role {
  kGenerate,    // ask, and see the references that answers are made with
  kReferences,  // list, add, delete and learn from references; set profiles
  kAdminister,  // the evaluation method ORACLE; priority HIGH
};

absl::string_view RoleName(Role role);

// Who calls. The name is the token's, else made of the transport by who fills it in.
struct Caller {
  std::string name;
  Role role = Role::kGenerate;
  CollectionAccess collections;
  CallerRates rates;
  std::shared_ptr<Grant> grant = nullptr;  // Of the token; null where there are none.
};

// Who may call, from a file of bearer tokens, one a line:
//   NAME ROLE SHA256 [read=A,B] [write=C] [calls/min=N] [tokens/min=N]
// NAME: 1 to 64 of letters, digits and ._- (several tokens may carry the same name, to replace one by another in
// peace); ROLE: generate, references or administer; SHA256: 64 hexadecimal digits, of the token's bytes. Empty lines
// and lines that begin with # are passed over. The same hash twice is refused: which name or role it gives would be a
// matter of order. The tokens themselves are nowhere.
//
// read=, write=: the collections that the caller may use, as far as its role reaches (collection_access.h). A line with
// neither may use all. Who may write may read; with write= alone nothing else may be read.
// calls/min=, tokens/min=: the caller's rates, of calls and of tokens through the model (rate_limiter.h), 1 to 10^12,
// or "unlimited"; left out, the server's own default. They are the name's: other lines of the same name must not say
// otherwise.
//
// LookAgain takes what the file holds by then; one that has become unreadable or wrong is logged, and what was known
// before stays in force. The grant of a token that is gone, or whose name, role or collections are others, is revoked
// then. Thread-safe.
class AccessControl {
 public:
  // Each call is compared with all of them.
  static constexpr size_t kTokensMax = 10000;

  // InvalidArgument "PATH:LINE: what is wrong", with both names where two lines contradict each other; also for a file
  // without a token, or with more than kTokensMax. NotFound: it cannot be read. `metrics` (null: nothing is counted)
  // outlives it.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Load(const std::string& path, Metrics* metrics = nullptr);

  // Of the value of the `authorization` header, "Bearer TOKEN" (the scheme in any case). Every stored hash is compared
  // in full, so that the time taken tells nothing. Unauthenticated: no token, or one that is not known.
  absl::StatusOr<Caller> Authenticate(absl::string_view authorization) const;

  // Reads the file again. Files are compared by content, so that no clock matters.
  void LookAgain();
  // Why the file is not what is in force; OK: it is.
  absl::Status refusal() const;

 private:
  struct Entry {
    std::string digest;  // lowercase hexadecimal
    Caller caller;
  };
  AccessControl(std::string path, Metrics* metrics) : path_(std::move(path)), metrics_(metrics) {}
  // `text`: of the file at `path`; `known`: what is in force. Where two lines contradict each other, the error is of
  // the one that `known` does not have, else of the later one, and names both.
  static absl::StatusOr<std::vector<Entry>> Parse(const std::string& path, const std::string& text,
                                                  const std::vector<Entry>& known);

  // Gives tokens that allow what they did the grants that they had; returns the others of `known`.
  static std::vector<std::shared_ptr<Grant>> KeepGrants(const std::vector<Entry>& known, std::vector<Entry>& entries);

  const std::string path_;
  Metrics* const metrics_;
  absl::Mutex reading_;  // Held while the file is read, before `mu_`: calls are let in meanwhile.
  mutable absl::Mutex mu_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mu_);
  // What the file held when it was last read, or why it could not be.
  absl::StatusOr<std::string> text_ ABSL_GUARDED_BY(reading_) = absl::UnknownError("");
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_ACCESS_CONTROL_H_
