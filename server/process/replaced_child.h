#ifndef C3PO_SERVER_PROCESS_REPLACED_CHILD_H_
#define C3PO_SERVER_PROCESS_REPLACED_CHILD_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/process/limited_child.h"

namespace c3po {

// A LimitedChild that answers messages, and that another one takes the place of when it has ended or was killed. A
// message and a reply are the length of the body, 4 bytes, most significant first, and the body.
// Of one thread at a time, the same from the first use to the last.
class ReplacedChild {
 public:
  struct Options {
    std::string messages;                                  // What they are, for on_killed: "forms".
    std::string work;                                      // "compiled a form": what a child did that ended meanwhile.
    absl::Duration retry_after;                            // A start that failed is not tried again sooner.
    size_t reply_bytes_max = 0;                            // Of a reply's body.
    std::function<void(absl::string_view why)> on_killed;  // may be null
    // Starts a child by Launch and makes it ready by Exchange. Its error is Ask's.
    std::function<absl::Status(ReplacedChild&)> start;
  };
  explicit ReplacedChild(Options options) : options_(std::move(options)) {}

  // The body of the reply to `body`, within `limit`, starts not counted. A child that ended meanwhile is replaced, and
  // asked once more, as somebody else may have killed it.
  //   DeadlineExceeded, OutOfRange: it took longer, or its reply is too large; the caller is to Kill it
  //   Aborted: it ended at this message; the message says how
  //   as Options::start: there is none
  absl::StatusOr<std::string> Ask(absl::string_view body, absl::Duration limit);
  // Ends it for what the message asked for.
  void Kill(absl::string_view why);
  // Starts another one where one was ended for a message's fault, so that the next message need not wait for it.
  void Renew();
  // Ends it for good.
  void End() { child_.reset(); }

  // --- Of Options::start ---
  absl::Status Launch(const LimitedChild::Options& options);
  // Unavailable: it has ended.
  absl::StatusOr<std::string> Exchange(absl::string_view body, absl::Time deadline);
  std::string Ending() { return child_->End(); }

 private:
  absl::Status Ensure();
  void Drop(absl::string_view why);

  const Options options_;
  std::unique_ptr<LimitedChild> child_;
  bool renew_ = false;
  absl::Status start_failure_;
  absl::Time start_failed_at_ = absl::InfinitePast();
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_REPLACED_CHILD_H_
