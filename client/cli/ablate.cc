#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/commands.h"
#include "client/cli/evaluation.h"
#include "client/eval/ablation.h"
#include "client/eval/collection_import.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kSetSize[] = "reference-set-size";

struct AblateFlags {
  EvaluationFlags evaluation;
  std::vector<std::string> variables;
  bool all = false;
  std::vector<std::string> points;
  std::string base = "ngd";
  std::vector<std::string> settings;
};

// Collections that hold a part of a task's references, deleted at the end whatever happens.
class SizedCollections {
 public:
  explicit SizedCollections(Session& session) : session_(session) {}
  ~SizedCollections() {
    for (const std::string& collection : made_) {
      v1::DeleteReferencesRequest request;
      request.set_collection(collection);
      // Not under the session's cancellation: after Ctrl-C they shall be gone too.
      CallOptions options;
      options.timeout = absl::Seconds(kTimeoutSeconds);
      const auto deleted = session_.client->DeleteReferences(request, options);
      if (!deleted.ok()) {
        absl::FPrintF(stderr, "collection %s is left over: %s\n", collection, deleted.status().ToString());
      }
    }
  }
  SizedCollections(const SizedCollections&) = delete;
  SizedCollections& operator=(const SizedCollections&) = delete;

  absl::Status Make(const Task& task, absl::Span<const v1::ReferenceSample> samples, size_t size, uint64_t seed) {
    const std::string collection = absl::StrCat(task.collection, SizeSuffix(size));
    made_.insert(collection);
    const std::vector<v1::ReferenceSample> subset = ReferenceSubset(samples, size, seed);
    ProgressLine progress(session_.terminal, absl::StrCat("references of ", collection), subset.size());
    const auto ids = ImportSamples(
        *session_.client, collection, subset, [&](size_t done) { progress.Update(done, ""); },
        session_.call_options(absl::InfiniteDuration()));
    progress.Clear();
    return ids.status();
  }

 private:
  Session& session_;
  std::set<std::string> made_;
};

absl::StatusOr<std::vector<std::vector<v1::ReferenceSample>>> ReadReferences(const std::vector<Task>& tasks) {
  std::vector<std::vector<v1::ReferenceSample>> samples;
  for (const Task& task : tasks) {
    if (task.references_file.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(kSetSize, ": task ", task.name, " is of no suite, so it has no references file"));
    }
    C3PO_ASSIGN_OR_RETURN(samples.emplace_back(), ReadSampleFile(task.references_file));
  }
  return samples;
}

// What all variables of one command share.
struct Ground {
  std::vector<Task> tasks;
  v1::GetServerInfoResponse server;
  EvalMethod base;
};

absl::Status AblateOne(Session& session, const AblateFlags& flags, const Ground& ground, const std::string& variable,
                       const std::string& out) {
  SizedCollections collections(session);
  std::vector<std::vector<v1::ReferenceSample>> samples;
  size_t references = 0;
  if (variable == kSetSize) {
    C3PO_ASSIGN_OR_RETURN(samples, ReadReferences(ground.tasks));
    for (const auto& of_task : samples) references = std::max(references, of_task.size());
  }
  C3PO_ASSIGN_OR_RETURN(const AblationPlan plan,
                        PlanAblation(variable, flags.points, ground.base, ground.server, references));
  for (size_t i = 0; i < samples.size(); ++i) {
    for (const size_t size : plan.sizes) {
      C3PO_RETURN_IF_ERROR(collections.Make(ground.tasks[i], samples[i], size, flags.evaluation.seed.value_or(0)));
    }
  }
  RunDescription run;
  run.tasks = ground.tasks;
  run.server = ground.server;
  run.methods = plan.methods;
  run.ablation = plan.axis;
  run.created_unix_seconds = absl::ToUnixSeconds(absl::Now());
  run.seed = flags.evaluation.seed;
  run.command_line = session.command_line;
  return RunEvaluation(session, flags.evaluation, out, run);
}

absl::Status Ablate(Session& session, const AblateFlags& flags) {
  const std::vector<std::string> variables = flags.all ? AblationVariables() : flags.variables;
  Ground ground;
  C3PO_ASSIGN_OR_RETURN(ground.tasks, LoadTasks(flags.evaluation));
  C3PO_ASSIGN_OR_RETURN(ground.server, session.client->GetServerInfo(session.call_options()));
  MethodContext context;
  context.common = flags.evaluation.optimization;
  context.common.clear_collection();
  context.server = ground.server;
  C3PO_ASSIGN_OR_RETURN(const std::vector<EvalMethod> base, MakeMethods({flags.base}, flags.settings, context));
  ground.base = base[0];
  if (flags.evaluation.import) C3PO_RETURN_IF_ERROR(ImportTaskReferences(session, ground.tasks));
  for (const std::string& variable : variables) {
    const std::string out =
        variables.size() == 1 ? flags.evaluation.out : absl::StrCat(flags.evaluation.out, "/", variable);
    if (variables.size() > 1) absl::PrintF("\n== %s ==\n", variable);
    C3PO_RETURN_IF_ERROR(AblateOne(session, flags, ground, variable, out));
  }
  return absl::OkStatus();
}

}  // namespace

void AddAblateCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand("ablate", "Accuracy over the range of one variable, everything else held");
  const auto flags = std::make_shared<AblateFlags>();
  CLI::Option* variable = command
                              ->add_option("--variable", flags->variables,
                                           absl::StrCat("By commas, of ", absl::StrJoin(AblationVariables(), ", ")))
                              ->delimiter(',')
                              ->check(CLI::IsMember(AblationVariables()));
  CLI::Option* all = command->add_flag("--all", flags->all, "Every variable, each in a folder of its own below --out");
  variable->excludes(all);
  command->add_option("--points", flags->points, "Values by commas in place of the variable's own")
      ->delimiter(',')
      ->excludes(all);
  command->add_option("--base", flags->base, "The method that is varied, as of eval --methods")->capture_default_str();
  command->add_option("--set", flags->settings, "An option of that method: LABEL.field=value, as of eval")
      ->allow_extra_args(false);
  flags->evaluation.offset_references = 0;  // The points of one variable are compared with each other.
  AddEvaluationFlags(*command, &flags->evaluation);
  command->callback([session, flags] {
    if (!flags->all && flags->variables.empty()) throw CLI::RequiredError("--variable or --all");
    session->command = [flags](Session& chosen) { return Ablate(chosen, *flags); };
  });
}

}  // namespace c3po
