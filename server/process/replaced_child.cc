#include "server/process/replaced_child.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"

namespace c3po {
namespace {

constexpr size_t kLengthBytes = 4;

std::string Framed(absl::string_view body) {
  std::string message;
  for (const int shift : {24, 16, 8, 0}) message.push_back(static_cast<char>(body.size() >> shift));
  message.append(body.data(), body.size());
  return message;
}

}  // namespace

absl::StatusOr<std::string> ReplacedChild::Ask(absl::string_view body, absl::Duration limit) {
  absl::Duration left = limit;
  for (const bool last : {false, true}) {
    C3PO_RETURN_IF_ERROR(Ensure());
    const absl::Time start = SteadyNow();
    absl::StatusOr<std::string> reply = Exchange(body, start + left);
    if (!absl::IsUnavailable(reply.status())) return reply;
    left -= SteadyNow() - start;
    const std::string ending = Ending();
    Drop(absl::StrCat("it ended while it ", options_.work));
    if (last || left <= absl::ZeroDuration()) {
      renew_ = true;
      return absl::AbortedError(ending);
    }
  }
  return absl::InternalError("not reached");
}

void ReplacedChild::Kill(absl::string_view why) {
  renew_ = true;
  Drop(why);
}

void ReplacedChild::Drop(absl::string_view why) {
  const std::string ending = Ending();
  child_.reset();
  if (options_.on_killed) options_.on_killed(absl::StrCat(why, " (", ending, ")"));
}

void ReplacedChild::Renew() {
  if (std::exchange(renew_, false)) Ensure().IgnoreError();  // The next message hears of it.
}

absl::Status ReplacedChild::Ensure() {
  if (child_ != nullptr) {
    if (!child_->HasEnded()) return absl::OkStatus();
    Drop(absl::StrCat("it ended between two ", options_.messages));
  }
  if (SteadyNow() - start_failed_at_ < options_.retry_after) return start_failure_;
  const absl::Status started = options_.start(*this);
  if (started.ok()) return started;
  child_.reset();
  start_failed_at_ = SteadyNow();
  start_failure_ = started;
  return started;
}

absl::Status ReplacedChild::Launch(const LimitedChild::Options& options) {
  C3PO_ASSIGN_OR_RETURN(child_, LimitedChild::Start(options));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReplacedChild::Exchange(absl::string_view body, absl::Time deadline) {
  C3PO_RETURN_IF_ERROR(child_->Write(Framed(body), deadline));
  std::string head, reply;
  C3PO_RETURN_IF_ERROR(child_->Read(kLengthBytes, deadline, &head));
  size_t length = 0;
  for (const char byte : head) length = length << 8 | static_cast<unsigned char>(byte);
  if (length > options_.reply_bytes_max) return absl::OutOfRangeError("a reply of too many bytes");
  C3PO_RETURN_IF_ERROR(child_->Read(length, deadline, &reply));
  return reply;
}

}  // namespace c3po
