#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/commands.h"
#include "client/cli/evaluation.h"
#include "client/eval/label_baselines.h"
#include "client/eval/method.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct EvalFlags {
  EvaluationFlags evaluation;
  std::vector<std::string> methods = {"none", "ngd", "icl", "knn"};
  std::vector<std::string> settings;
};

absl::Status Eval(Session& session, const EvalFlags& flags) {
  const EvaluationFlags& evaluation = flags.evaluation;
  RunDescription run;
  C3PO_ASSIGN_OR_RETURN(run.tasks, LoadTasks(evaluation));
  C3PO_ASSIGN_OR_RETURN(run.server, session.client->GetServerInfo(session.call_options()));
  MethodContext context;
  context.common = evaluation.optimization;
  context.common.clear_collection();  // The tasks carry it.
  context.server = run.server;
  context.shots = evaluation.shots;
  C3PO_ASSIGN_OR_RETURN(run.methods, MakeMethods(flags.methods, flags.settings, context));
  for (const EvalMethod& method : run.methods) {
    if (!IsLabelBaseline(method.label)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        method.label, " is a row that every report has by itself: no method may be called so; LABEL=NAME renames it"));
  }
  run.created_unix_seconds = absl::ToUnixSeconds(absl::Now());
  run.seed = evaluation.seed;
  run.command_line = session.command_line;
  if (evaluation.import) C3PO_RETURN_IF_ERROR(ImportTaskReferences(session, run.tasks));
  return RunEvaluation(session, evaluation, evaluation.out, run);
}

}  // namespace

void AddEvalCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand(
      "eval", "Accuracy of methods side by side on benchmarks: a resumable run, tables, an HTML report");
  const auto flags = std::make_shared<EvalFlags>();
  command
      ->add_option("--methods", flags->methods,
                   absl::StrCat("By commas, of ", absl::StrJoin(MethodNames(), ", "),
                                "; LABEL=NAME gives one another label, so that it may be there twice"))
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--set", flags->settings,
                   "An option of one method: LABEL.field=value, as the .proto names it (ngd.steps=20, "
                   "ngd.gate.enabled=false); may be given several times")
      ->allow_extra_args(false);
  AddEvaluationFlags(*command, &flags->evaluation);
  command->callback([session, flags] { session->command = [flags](Session& chosen) { return Eval(chosen, *flags); }; });
}

}  // namespace c3po
