// c3po refs export: the samples of a collection as the JSONL that `c3po refs import` reads.

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/part_file.h"
#include "client/cli/terminal.h"
#include "client/eval/sample_line.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ExportFlags {
  std::string collection = "default";
  std::string path = "-";
};

// Where the samples go: a file, which is replaced once the new one is whole, or stdout and what else is no file of its
// own (a pipe, a terminal).
class SampleSink {
 public:
  static absl::StatusOr<SampleSink> Open(const std::string& path) {
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path, error);
    SampleSink sink(path);
    if (path == "-") {
      sink.stream_.reset(stdout);
    } else if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
      sink.stream_.reset(std::fopen(path.c_str(), "wb"));
      if (sink.stream_ == nullptr) return FileError(path, "cannot be written", errno);
    } else {
      C3PO_ASSIGN_OR_RETURN(PartFile file, PartFile::Create(path, 0666));
      sink.file_.emplace(std::move(file));
    }
    return sink;
  }

  absl::Status Write(const std::string& text) {
    if (file_) return file_->Append(text);
    if (std::fwrite(text.data(), 1, text.size(), stream_.get()) == text.size()) return absl::OkStatus();
    return FileError(path_, "cannot be written", errno);
  }
  absl::Status Finish() {
    if (file_) return file_->Finish();
    return std::fflush(stream_.get()) == 0 ? absl::OkStatus() : FileError(path_, "cannot be written", errno);
  }

 private:
  struct CloseUnlessStdout {
    void operator()(std::FILE* stream) const {
      if (stream != stdout) std::fclose(stream);
    }
  };

  explicit SampleSink(const std::string& path) : path_(path) {}

  std::string path_;
  std::optional<PartFile> file_;
  std::unique_ptr<std::FILE, CloseUnlessStdout> stream_;
};

absl::Status Export(Session& session, const ExportFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(SampleSink out, SampleSink::Open(flags.path));
  v1::ListReferencesRequest request;
  request.set_collection(flags.collection);
  request.set_page_size(1000);
  ProgressLine progress(session.terminal, "references", 0);
  uint64_t count = 0;
  absl::Status written;
  const absl::Status status = session.client->ForEachReference(
      request,
      [&](const v1::Reference& reference) {
        written = out.Write(absl::StrCat(SampleLineText(reference.sample()), "\n"));
        if (!written.ok()) return false;
        ++count;
        if (flags.path != "-") progress.Update(count, "");
        return true;
      },
      session.call_options(absl::InfiniteDuration()));
  progress.Clear();
  C3PO_RETURN_IF_ERROR(status);
  C3PO_RETURN_IF_ERROR(written);
  if (count == 0) {
    return absl::NotFoundError(absl::StrCat("collection ", flags.collection, " has no references"));
  }
  C3PO_RETURN_IF_ERROR(out.Finish());
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
