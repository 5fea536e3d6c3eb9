#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/sample_file.h"
#include "client/cli/tune_offset.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ImportFlags {
  std::string path;
  std::string collection = "default";
  uint64_t limit = 0;  // 0: all
  bool replace = false;
  bool strict = false;
  bool offset = false;
  bool json = false;
};

constexpr uint64_t kToldWarningsMax = 10;  // The rest are counted.
constexpr size_t kToldUnreadMax = 20;      // names of fields
constexpr size_t kKeyBytesMax = 64;

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
      WarnOfUnread(*line);
      ++sent_;
      return NumberedSample{line->number, std::move(line->sample)};
    }
    return std::nullopt;
  }

  void OnResponse(const v1::AddReferencesResponse& response) {
    generation_ = response.index_generation();
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
      replaced_ += static_cast<uint64_t>(verdict.replaced_ids_size());
      if (verdict.contradicted_ids_size() > 0) {
        Warn(verdict.sequence(), contradicting_++,
             absl::StrCat("the same prompt has another answer in ", absl::StrJoin(verdict.contradicted_ids(), ", "),
                          "; --replace lets the new sample take its place"));
      }
      if (!verdict.warning().empty()) Warn(verdict.sequence(), tokenized_otherwise_++, verdict.warning());
    }
    progress_.Update(added() + duplicate_ + malformed_.count(), Counts());
  }

  // The counts of what has been acknowledged, to stdout.
  void PrintSummary() {
    progress_.Clear();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start_);
    if (flags_.json) {
      absl::PrintF(
          "{\"collection\":%s,\"added\":%d,\"successful\":%d,\"failed\":%d,\"replaced\":%d,\"duplicate\":%d,"
          "\"malformed\":%d,\"contradicting\":%d,\"tokenized_otherwise\":%d,\"index_generation\":%d,\"seconds\":%.3f}"
          "\n",
          JsonText(flags_.collection), added(), successful_, failed_, replaced_, duplicate_, malformed_.count(),
          contradicting_, tokenized_otherwise_, generation_, seconds);
    } else {
      absl::PrintF("collection %s: %s (%.1f s)\n", flags_.collection, Counts(), seconds);
    }
  }

  // What a collection needs next that has new references, to stdout.
  void PrintNextStep(bool has_profile) const {
    absl::PrintF("%s\n  c3po calibrate --collection %s\n",
                 has_profile ? "The collection's profile was calibrated before; with the new references, do it again:"
                             : "Next, find the settings that help here, and store them as the collection's profile:",
                 ShellWord(flags_.collection));
  }

  uint64_t added() const { return successful_ + failed_; }
  uint64_t kept() const { return added() + duplicate_; }  // samples that the collection holds now
  // An import that leaves the collection without any of the file's samples has failed, whatever the reason.
  absl::Status Outcome() const {
    if (kept() > 0) return malformed_.Outcome(flags_.strict);
    return absl::InvalidArgumentError(
        malformed_.count() == 0
            ? absl::StrCat(flags_.path, ": holds no sample")
            : absl::StrCat(flags_.path, ": no sample was added, ", malformed_.count(),
                           malformed_.count() == 1 ? " line is malformed" : " lines are malformed"));
  }

 private:
  static uint64_t Total(const ImportFlags& flags) {
    const uint64_t lines = SampleFile::CountLines(flags.path);
    return flags.limit == 0 ? lines : std::min(lines, flags.limit);
  }

  void ReportMalformed(uint64_t line, const std::string& why) {
    progress_.Clear();
    malformed_.Report(line, why);
  }

  // Each name once: "anwser" may be a mistake, and what is in it is lost.
  void WarnOfUnread(const SampleLine& line) {
    for (const std::string& key : line.unread) {
      if (told_unread_.size() >= kToldUnreadMax || !told_unread_.insert(key).second) continue;
      progress_.Clear();
      absl::FPrintF(stderr,
                    "%s:%d: warning: \"%s\" is no field of a sample and is not imported; \"metadata\" may hold it\n",
                    flags_.path, line.number, WithoutControls(key.substr(0, kKeyBytesMax)));
      if (told_unread_.size() == kToldUnreadMax) absl::FPrintF(stderr, "further such fields are not told\n");
    }
  }

  void Warn(uint64_t line, uint64_t told_before, const std::string& what) {
    if (told_before > kToldWarningsMax) return;
    progress_.Clear();
    if (told_before == kToldWarningsMax) {
      absl::FPrintF(stderr, "further such lines are only counted\n");
    } else {
      absl::FPrintF(stderr, "%s:%d: warning: %s\n", flags_.path, line, WithoutControls(what));
    }
  }

  // "303 added; the model already answers 128". What did not happen is left out, but for the malformed lines.
  std::string Counts() const {
    std::string text = absl::StrCat(added(), " added");
    if (added() > 0) absl::StrAppend(&text, "; the model already answers ", successful_);
    if (replaced_ > 0) absl::StrAppend(&text, "; ", replaced_, " replaced");
    if (duplicate_ > 0) absl::StrAppend(&text, "; ", duplicate_, " there already");
    absl::StrAppend(&text, "; ", malformed_.count(), " malformed");
    if (contradicting_ > 0) absl::StrAppend(&text, "; ", contradicting_, " contradict other references");
    if (tokenized_otherwise_ > 0)
      absl::StrAppend(&text, "; ", tokenized_otherwise_, " have choices tokenized otherwise");
    return text;
  }

  const ImportFlags& flags_;
  SampleFile file_;
  MalformedLines malformed_;
  ProgressLine progress_;
  const absl::Time start_;
  std::set<std::string> told_unread_;  // fields that are no sample's
  uint64_t sent_ = 0;
  uint64_t successful_ = 0;
  uint64_t failed_ = 0;
  uint64_t duplicate_ = 0;
  uint64_t replaced_ = 0;             // references that went
  uint64_t contradicting_ = 0;        // samples whose prompt has another answer elsewhere
  uint64_t tokenized_otherwise_ = 0;  // samples that the server warns about
  uint64_t generation_ = 0;           // that holds what was added
};

// False where the server does not say: the import itself is done.
bool HasProfile(Session& session, const std::string& collection) {
  v1::GetCollectionRequest request;
  request.set_collection(collection);
  const auto response = session.client->GetCollection(request, session.call_options());
  return response.ok() && response->has_profile();
}

absl::Status RunImport(Session& session, const ImportFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(SampleFile file, SampleFile::Open(flags.path));
  Import import(session.terminal, flags, std::move(file));
  ImportOptions options;
  options.replace = flags.replace;
  // An import takes as long as it takes: no deadline unless one was given.
  const absl::Status status = session.client->AddReferences(
      flags.collection, [&] { return import.NextSample(); },
      [&](const v1::AddReferencesResponse& response) {
        import.OnResponse(response);
        return true;
      },
      options, session.call_options(absl::InfiniteDuration()));
  import.PrintSummary();
  C3PO_RETURN_IF_ERROR(status);
  if (import.added() > 0 && !flags.json) import.PrintNextStep(HasProfile(session, flags.collection));
  if (flags.offset && import.kept() > 0) {
    v1::TuneOffsetRequest request;
    request.set_collection(flags.collection);
    const absl::Status tuned = TuneOffset(session, request, flags.json);
    if (!tuned.ok()) {
      return absl::Status(tuned.code(),
                          absl::StrCat("the samples are imported, but no label offset was fitted: ", tuned.message()));
    }
  }
  return import.Outcome();
}

}  // namespace

void AddRefsImportCommand(CLI::App& refs, Session* session) {
  CLI::App* command = refs.add_subcommand(
      "import",
      "Add the samples of a JSONL file: {\"prompt\", \"answer\", optional \"choices\", \"metadata\", \"reference_id\"} "
      "per line");
  const auto flags = std::make_shared<ImportFlags>();
  command->add_option("file", flags->path, "The file; - is stdin")->required()->check(SampleFile::IsReadable());
  command->add_option("--collection", flags->collection, "Where the samples go")
      ->check(NotEmpty())
      ->capture_default_str();
  command->add_option("--limit", flags->limit, "Send at most this many samples; 0: all");
  command->add_flag("--replace", flags->replace,
                    "A sample takes the place of the collection's references with the same prompt");
  command->add_flag("--strict", flags->strict,
                    "Fail when any line was malformed (the others are imported all the same)");
  command->add_flag("--offset", flags->offset,
                    "Then fit the collection's label offset, of the model alone (as refs tune --offset)");
  command->add_flag("--json", flags->json, "Print the summary as JSON");
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return RunImport(chosen, *flags); }; });
}

}  // namespace c3po
