// c3po store backup: a copy of the server's reference store in a file of this machine.

#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/cli/commands.h"
#include "client/cli/part_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct BackupFlags {
  std::string file;
  bool force = false;
};

absl::Status Backup(Session& session, const BackupFlags& flags) {
  std::error_code error;
  if (!flags.force && std::filesystem::exists(flags.file, error)) {
    return absl::InvalidArgumentError(absl::StrCat(flags.file, ": is there already; --force replaces it"));
  }
  C3PO_ASSIGN_OR_RETURN(PartFile part, PartFile::Create(flags.file, 0600));
  Sha256 digest;
  uint64_t received = 0, total = 0;
  std::string sent_digest;
  absl::Status written;
  const absl::Status called = session.client->BackupStore(
      {},
      [&](const v1::BackupStoreResponse& message) {
        digest.Update(message.chunk());
        received += message.chunk().size();
        total = message.total_bytes();
        sent_digest = message.sha256();
        written = part.Append(message.chunk());
        return written.ok();
      },
      session.call_options(absl::InfiniteDuration()));
  C3PO_RETURN_IF_ERROR(written);
  C3PO_RETURN_IF_ERROR(called);
  if (total == 0 || received != total || sent_digest != digest.HexDigest()) {
    return absl::DataLossError(absl::StrCat(flags.file, ": ", received, " of ", total,
                                            " bytes came, or others than were sent; nothing is kept"));
  }
  C3PO_RETURN_IF_ERROR(part.Finish());
  absl::PrintF("%s: %d bytes, sha256 %s\n", flags.file, total, sent_digest);
  return absl::OkStatus();
}

}  // namespace

void AddStoreCommand(CLI::App& app, Session* session) {
  CLI::App* store = app.add_subcommand("store", "The reference store as a whole");
  store->require_subcommand(1);
  store->fallthrough();
  CLI::App* backup =
      store->add_subcommand("backup", "Copy it from the running server into FILE, which c3pod --store FILE can serve");
  const auto flags = std::make_shared<BackupFlags>();
  backup->add_option("file", flags->file, "The new file")->required();
  backup->add_flag("--force", flags->force, "Replace a file that is there");
  backup->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return Backup(chosen, *flags); }; });
}

}  // namespace c3po
