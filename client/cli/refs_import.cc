#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/sample_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ImportFlags {
  std::string path;
  std::string collection = "default";
  uint64_t limit = 0;  // 0: all
  bool strict = false;
  bool json = false;
};

// One run of `refs import`.
class Import {
 public:
  Import(const Terminal& terminal, const ImportFlags& flags, SampleFile file)
      : flags_(flags),
        file_(std::move(file)),
        malformed_(flags.path),
        progress_(terminal, "samples", Total(flags)),
        start_(absl::Now()) {}

  // The next well-formed sample of the file.
  absl::StatusOr<std::optional<NumberedSample>> NextSample() {
    while (flags_.limit == 0 || sent_ < flags_.limit) {
      C3PO_ASSIGN_OR_RETURN(std::optional<SampleLine> line, file_.Next());
      if (!line) break;
      if (!line->status.ok()) {
        ReportMalformed(line->number, std::string(line->status.message()));
        continue;
      }
      ++sent_;
      return NumberedSample{line->number, std::move(line->sample)};
    }
    return std::nullopt;
  }

  void OnResponse(const v1::AddReferencesResponse& response) {
    for (const v1::SampleVerdict& verdict : response.verdicts()) {
      switch (verdict.verdict()) {
        case v1::VERDICT_SUCCESSFUL:
          ++successful_;
          break;
        case v1::VERDICT_FAILED:
          ++failed_;
          break;
        case v1::VERDICT_DUPLICATE:
          ++duplicate_;
          break;
        default:
          ReportMalformed(verdict.sequence(), verdict.message());
      }
    }
    progress_.Update(successful_ + failed_ + duplicate_ + malformed_.count(), Counts());
  }

  // The counts of what has been acknowledged, to stdout.
  void PrintSummary() {
    progress_.Clear();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start_);
    if (flags_.json) {
      absl::PrintF(
          "{\"collection\":%s,\"successful\":%d,\"failed\":%d,\"duplicate\":%d,\"malformed\":%d,"
          "\"seconds\":%.3f}\n",
          JsonText(flags_.collection), successful_, failed_, duplicate_, malformed_.count(), seconds);
    } else {
      absl::PrintF("collection %s: %s (%.1f s)\n", flags_.collection, Counts(), seconds);
    }
  }

  const MalformedLines& malformed() const { return malformed_; }

 private:
  static uint64_t Total(const ImportFlags& flags) {
    const uint64_t lines = SampleFile::CountLines(flags.path);
    return flags.limit == 0 ? lines : std::min(lines, flags.limit);
  }

  void ReportMalformed(uint64_t line, const std::string& why) {
    progress_.Clear();
    malformed_.Report(line, why);
  }

  std::string Counts() const {
    return absl::StrCat(successful_, " successful, ", failed_, " failed, ", malformed_.count(), " malformed, ",
                        duplicate_, " duplicate");
  }

  const ImportFlags& flags_;
  SampleFile file_;
  MalformedLines malformed_;
  ProgressLine progress_;
  const absl::Time start_;
  uint64_t sent_ = 0;
  uint64_t successful_ = 0;
  uint64_t failed_ = 0;
  uint64_t duplicate_ = 0;
};

absl::Status RunImport(Session& session, const ImportFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(SampleFile file, SampleFile::Open(flags.path));
  Import import(session.terminal, flags, std::move(file));
  // An import takes as long as it takes: no deadline unless one was given.
  const absl::Status status = session.client->AddReferences(
      flags.collection, [&] { return import.NextSample(); },
      [&](const v1::AddReferencesResponse& response) {
        import.OnResponse(response);
        return true;
      },
      ImportOptions(), session.call_options(absl::InfiniteDuration()));
  import.PrintSummary();
  C3PO_RETURN_IF_ERROR(status);
  return import.malformed().Outcome(flags.strict);
}

}  // namespace

void AddRefsImportCommand(CLI::App& refs, Session* session) {
  CLI::App* command = refs.add_subcommand(
      "import",
      "Add the samples of a JSONL file: {\"prompt\", \"answer\", optional \"choices\", \"metadata\"} per line");
  const auto flags = std::make_shared<ImportFlags>();
  command->add_option("file", flags->path, "The file; - is stdin")->required()->check(SampleFile::IsReadable());
  command->add_option("--collection", flags->collection, "Where the samples go")->capture_default_str();
  command->add_option("--limit", flags->limit, "Send at most this many samples; 0: all");
  command->add_flag("--strict", flags->strict,
                    "Fail when any line was malformed (the others are imported all the same)");
  command->add_flag("--json", flags->json, "Print the summary as JSON");
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return RunImport(chosen, *flags); }; });
}

}  // namespace c3po
