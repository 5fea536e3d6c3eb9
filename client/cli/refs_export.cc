// c3po refs export: the samples of a collection as the JSONL that `c3po refs import` reads.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/terminal.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ExportFlags {
  std::string collection = "default";
  std::string path = "-";
};

// A file, or stdout for "-". What was written stays when the export fails: the error says that it is not whole.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), file_(path == "-" ? stdout : std::fopen(path.c_str(), "wb")) {}
  ~OutputFile() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  absl::Status status() const {
    if (file_ != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path_, ": cannot be written: ", std::strerror(errno)));
  }
  bool Write(const std::string& text) { return std::fwrite(text.data(), 1, text.size(), file_) == text.size(); }
  absl::Status Finish() {
    if (std::fflush(file_) == 0 && std::ferror(file_) == 0) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(path_, ": cannot be written"));
  }

 private:
  const std::string path_;
  std::FILE* const file_;
};

absl::Status Export(Session& session, const ExportFlags& flags) {
  OutputFile out(flags.path);
  C3PO_RETURN_IF_ERROR(out.status());
  v1::ListReferencesRequest request;
  request.set_collection(flags.collection);
  request.set_page_size(1000);
  ProgressLine progress(session.terminal, "references", 0);
  uint64_t count = 0;
  bool written = true;
  const absl::Status status = session.client->ForEachReference(
      request,
      [&](const v1::Reference& reference) {
        written = out.Write(absl::StrCat(SampleLineText(reference.sample()), "\n"));
        ++count;
        if (flags.path != "-") progress.Update(count, "");
        return written;
      },
      session.call_options(absl::InfiniteDuration()));
  progress.Clear();
  C3PO_RETURN_IF_ERROR(status);
  C3PO_RETURN_IF_ERROR(out.Finish());
  if (count == 0) {
    return absl::NotFoundError(absl::StrCat("collection ", flags.collection, " has no references"));
  }
  if (flags.path != "-") absl::PrintF("%d references of collection %s in %s\n", count, flags.collection, flags.path);
  return absl::OkStatus();
}

}  // namespace

void AddRefsExportCommand(CLI::App& refs, Session* session) {
  CLI::App* command = refs.add_subcommand(
      "export", "Write a collection's samples, one JSON object a line, as refs import reads them; by ascending id");
  const auto flags = std::make_shared<ExportFlags>();
  command->add_option("file", flags->path, "The file; -, the default, is stdout");
  command->add_option("--collection", flags->collection, "The collection")->check(NotEmpty())->capture_default_str();
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return Export(chosen, *flags); }; });
}

}  // namespace c3po
