#include "server/rpc/backup_reactor.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "c3po/v1/reference.pb.h"
#include "index/base/escaped_exception.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

constexpr int kPagesPerStep = 256;  // 1 MiB: others wait for the store so long.
constexpr size_t kChunkBytes = 256 << 10;
constexpr std::chrono::seconds kRevokedGrace(1);

}  // namespace

BackupReactor::BackupReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
    : parts_(parts), call_(context, parts, Metrics::Rpc::kReferencesBackupStore), context_(context) {
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, [this] { return Submit(); });
  if (!status.ok()) Finish(call_.End(status));
}

absl::Status BackupReactor::Submit() {
  C3PO_RETURN_IF_ERROR(call_.entry());
  if (!call_.collections().Everything())
    return absl::PermissionDeniedError("a backup holds every collection, and the caller may use some of them only");
  if (call_.grant() != nullptr) {
    hold_ = call_.grant()->Watch([this] {
      const std::lock_guard<std::mutex> lock(mu_);
      revoked_ = true;
      written_.notify_all();
    });
  }
  C3PO_ASSIGN_OR_RETURN(place_, parts_.backup_places->TakePlace(call_.caller()));
  const auto run = [this] {
    const absl::Status status = CatchEscaped(ThreadKind::kWorker, [this] { return CopyAndSend(); });
    Finish(call_.End(status));  // It may be gone then.
    return absl::OkStatus();
  };
  return parts_.backups->Submit(run, nullptr) ? absl::OkStatus()
                                              : absl::ResourceExhaustedError("too many backups are being made");
}

absl::Status BackupReactor::CopyAndSend() {
  const std::string path = parts_.store->partial_backup_path();
  std::ifstream file;
  {
    auto backup = parts_.store->StartBackup(path);
    if (absl::IsAlreadyExists(backup.status())) return absl::FailedPreconditionError(backup.status().message());
    C3PO_RETURN_IF_ERROR(backup.status());
    for (bool whole = false; !whole;) {
      C3PO_RETURN_IF_ERROR(CheckCancelled());
      C3PO_ASSIGN_OR_RETURN(whole, (*backup)->Step(kPagesPerStep));
    }
    file.open(path, std::ios::binary);
    unlink(path.c_str());
  }
  if (!file) return absl::InternalError(absl::StrCat("backup ", path, ": cannot be read"));
  file.seekg(0, std::ios::end);
  const auto total = static_cast<uint64_t>(file.tellg());
  file.seekg(0);
  Sha256 digest;
  std::string bytes;
  for (uint64_t sent = 0; sent < total; sent += bytes.size()) {
    C3PO_RETURN_IF_ERROR(CheckCancelled());
    bytes.resize(std::min<uint64_t>(kChunkBytes, total - sent));
    if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
      return absl::InternalError(absl::StrCat("backup ", path, ": ended after ", sent, " of ", total, " bytes"));
    digest.Update(bytes);
    v1::BackupStoreResponse message;
    message.set_chunk(bytes);
    message.set_total_bytes(total);
    if (sent + bytes.size() == total) message.set_sha256(digest.HexDigest());
    C3PO_RETURN_IF_ERROR(Write(message));
  }
  call_.Audit("backup_store", {{"bytes", total}});
  return absl::OkStatus();
}

absl::Status BackupReactor::CheckCancelled() const {
  return call_.cancelled()->load() ? absl::CancelledError("the client left before the backup was whole")
                                   : absl::OkStatus();
}

absl::Status BackupReactor::Write(const google::protobuf::Message& message) {
  C3PO_ASSIGN_OR_RETURN(outgoing_, ToBytes(message));
  {
    const std::lock_guard<std::mutex> lock(mu_);
    writing_ = true;
  }
  StartWrite(&outgoing_);
  std::unique_lock<std::mutex> lock(mu_);
  const auto written = [this] { return !writing_; };
  const auto written_or_revoked = [this] { return !writing_ || revoked_; };
  bool in_time = written_.wait_for(lock, absl::ToChronoNanoseconds(parts_.unread_max), written_or_revoked);
  if (in_time && revoked_) in_time = written_.wait_for(lock, kRevokedGrace, written);
  if (!in_time) {
    lock.unlock();
    context_->TryCancel();  // Which ends the write.
    lock.lock();
    written_.wait(lock, written);
    if (revoked_) return absl::CancelledError("the token was revoked before the backup was whole");
    return absl::ResourceExhaustedError("the client does not read the backup");
  }
  return broken_ ? absl::CancelledError("the client left before the backup was whole") : absl::OkStatus();
}

void BackupReactor::OnWriteDone(bool ok) {
  const std::lock_guard<std::mutex> lock(mu_);
  writing_ = false;
  broken_ = broken_ || !ok;
  written_.notify_all();  // Under the lock: the thread may end the call, and this with it, as soon as it can have it.
}

void BackupReactor::OnDone() { delete this; }

}  // namespace c3po
