// c3po refs tune and c3po refs amortize: what a server learns over a collection once, offline.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/cli/request_flags.h"
#include "client/cli/tune_offset.h"
#include "client/eval/option_setting.h"
#include "index/base/status_macros.h"
#include "index/types/optimization_terms.h"

namespace c3po {
namespace {

struct TuneFlags {
  v1::TunePriorRequest request;
  bool offset = false;  // then this one is sent
  v1::TuneOffsetRequest offset_request;
  bool json = false;
};

void PrintPrior(const v1::PriorInfo& prior) {
  absl::PrintF("prior stored: layers %s, fitted to %d references; on %d held apart loss %.4f → %.4f%s\n",
               DescribeLayers(prior.critical_layers()), prior.references(), prior.validation_references(),
               prior.validation_loss_before(), prior.validation_loss_after(), PriorAccuracies(prior));
}

absl::Status Tune(Session& session, const TuneFlags& flags) {
  if (flags.offset) return TuneOffset(session, flags.offset_request, flags.json);
  absl::Status printed;
  bool stored = false;
  if (!flags.json) absl::PrintF("epoch  training loss  held-out loss  held-out accuracy  seconds\n");
  C3PO_RETURN_IF_ERROR(session.client->TunePrior(
      flags.request,
      [&](const v1::TunePriorResponse& event) {
        if (flags.json) {
          printed = PrintJsonLine(event);
        } else if (!event.finished()) {
          const std::string accuracy = event.has_validation_accuracy()
                                           ? absl::StrFormat("%.1f %%", 100 * event.validation_accuracy())
                                           : std::string("-");
          const std::string training =
              event.has_training_loss() ? absl::StrFormat("%.4f", event.training_loss()) : std::string("-");
          absl::PrintF("%5d  %13s  %13.4f  %17s  %7.1f\n", event.epoch(), training, event.validation_loss(), accuracy,
                       event.seconds());
          std::fflush(stdout);
        }
        if (event.has_stored()) {
          stored = true;
          if (!flags.json) PrintPrior(event.stored());
        }
        return printed.ok();
      },
      session.call_options(absl::InfiniteDuration())));
  C3PO_RETURN_IF_ERROR(printed);
  if (!stored && !flags.json) absl::PrintF("no prior stored: the held-out loss never fell\n");
  return absl::OkStatus();
}

struct AmortizeFlags {
  std::string collection = "default";
  v1::OptimizationOptions optimization;
  bool json = false;
};

absl::Status Amortize(Session& session, const AmortizeFlags& flags) {
  v1::AmortizeShiftsRequest request;
  request.set_collection(flags.collection);
  *request.mutable_optimization() = flags.optimization;
  std::optional<ProgressLine> progress;
  v1::AmortizeShiftsResponse last;
  absl::Status printed;
  const absl::Status status = session.client->AmortizeShifts(
      request,
      [&](const v1::AmortizeShiftsResponse& event) {
        last = event;
        if (flags.json) {
          printed = PrintJsonLine(event);
        } else {
          if (!progress) progress.emplace(session.terminal, "references", event.total());
          progress->Update(event.done() + event.skipped(), absl::StrCat(event.skipped(), " had a shift already"));
        }
        return printed.ok();
      },
      session.call_options(absl::InfiniteDuration()));
  if (progress) progress->Clear();
  if (!flags.json) {
    absl::PrintF("collection %s: %d shifts found, %d were there already, of %d references\n", flags.collection,
                 last.done(), last.skipped(), last.total());
  }
  return status.ok() ? printed : status;
}

template <typename T, typename Set>
CLI::Option* Field(CLI::App& command, const char* flag, const char* help, Set set) {
  return command.add_option_function<T>(
      flag, [set](const T& value) { set(value); }, help);
}

// The flags of a request that an offset may be fitted after, but for those that are a prior's, too, and what belongs to
// one request. They need --offset.
void AddOffsetFlags(CLI::App& command, TuneFlags* flags) {
  v1::OptimizationOptions* options = flags->offset_request.mutable_optimization();
  AddOptimizationFlags(command, options);
  for (const char* other : {"--offset", "--collection", "--critical-layers", "--prompt-positions", "--objective",
                            "--learning-rate", "--patience", "--return-pathways"}) {
    command.remove_option(command.get_option(other));
  }
  const std::vector<CLI::Option*> of_requests =
      command.get_options([&command](CLI::Option* option) { return option != command.get_help_ptr(); });
  CLI::Option* offset =
      command.add_flag("--offset", flags->offset,
                       "Fit the collection's label offset instead: a scale and a number per label for the scores of "
                       "choices. Of the model "
                       "alone, or after --method and its options, or after what the profile says (--profile)");
  for (CLI::Option* option : of_requests) option->needs(offset);
}

void AddTune(CLI::App& refs, Session* session) {
  CLI::App* command = refs.add_subcommand(
      "tune", "Learn one router shift over a collection (its prior), or its label offset; the old one stays on Ctrl-C");
  const auto flags = std::make_shared<TuneFlags>();
  v1::TunePriorRequest* request = &flags->request;
  v1::TuneOffsetRequest* offset = &flags->offset_request;
  v1::OptimizationOptions* options = offset->mutable_optimization();
  request->set_collection("default");
  offset->set_collection("default");
  AddOffsetFlags(*command, flags.get());
  CLI::Option* fits_offset = command->get_option("--offset");
  Field<std::string>(*command, "--collection", "The collection; default \"default\"", [=](const std::string& value) {
    request->set_collection(value);
    offset->set_collection(value);
  });
  Field<std::string>(*command, "--critical-layers", "MoE layers that are shifted: 25,26 or 25-29",
                     [=](const std::string& value) {
                       const auto layers = ParseLayerList(value);
                       if (!layers.ok()) {
                         throw CLI::ValidationError("--critical-layers", std::string(layers.status().message()));
                       }
                       request->mutable_critical_layers()->Assign(layers->begin(), layers->end());
                       options->mutable_critical_layers()->Assign(layers->begin(), layers->end());
                     });
  Field<uint32_t>(*command, "--prompt-positions",
                  "Last tokens of a prompt that are shifted, besides the answer's; default 1", [=](uint32_t v) {
                    request->set_prompt_positions(v);
                    options->set_prompt_positions(v);
                  });
  std::vector<std::string> objectives;
  for (const Term<SurrogateLoss>& term : TermsOf<SurrogateLoss>()) objectives.emplace_back(term.flag);
  Field<std::string>(*command, "--objective", "Loss of a reference: answer or choices (default)",
                     [=](const std::string& value) {
                       const auto number = static_cast<v1::Objective>(TermOfFlag<SurrogateLoss>(value)->number);
                       request->set_objective(number);
                       options->set_objective(number);
                     })
      ->check(CLI::IsMember(objectives));
  Field<double>(*command, "--learning-rate", "Of Adam; default 0.05", [=](double v) {
    request->set_learning_rate(v);
    options->set_learning_rate(v);
  });
  Field<uint32_t>(*command, "--patience",
                  "Epochs without a better held-out loss before it stops; default 2. With --offset: steps of descent",
                  [=](uint32_t v) {
                    request->set_patience(v);
                    options->set_patience(v);
                  });
  Field<uint32_t>(*command, "--max-references", "A seeded sample of this many; 0: all", [=](uint32_t v) {
    request->set_max_references(v);
    offset->set_max_references(v);
  });
  Field<uint64_t>(*command, "--seed", "Of the sample, the split and the order", [=](uint64_t v) {
    request->set_seed(v);
    offset->set_seed(v);
  });
  const std::vector<CLI::Option*> of_prior = {
      Field<uint32_t>(*command, "--epochs", "Passes at most; default 8", [=](uint32_t v) { request->set_epochs(v); }),
      Field<uint32_t>(*command, "--batch-size",
                      "References per step; default 16, or fewer where the server's memory asks for it",
                      [=](uint32_t v) { request->set_batch_size(v); }),
      Field<double>(*command, "--validation-fraction", "Of the references, held apart; default 0.2",
                    [=](double v) { request->set_validation_fraction(v); }),
      Field<double>(*command, "--weight-decay", "Pulls the shift to zero; default 0",
                    [=](double v) { request->set_weight_decay(v); }),
      command->add_flag_function(
          "--successful-only", [=](int64_t count) { request->set_successful_only(count > 0); },
          "Only references that the model answers correctly by itself")};
  for (CLI::Option* option : of_prior) option->excludes(fits_offset);
  command->add_flag("--json", flags->json, "Print one JSON document per epoch, or message");
  command->callback([session, flags] {
    // Without a method of its own the offset is the model's alone, whatever the profile says.
    v1::OptimizationOptions* after = flags->offset_request.mutable_optimization();
    if (!after->has_method() && !after->has_preset() && !after->has_use_profile()) after->set_method(v1::METHOD_NONE);
    session->command = [flags](Session& chosen) { return Tune(chosen, *flags); };
  });
}

void AddAmortize(CLI::App& refs, Session* session) {
  CLI::App* command = refs.add_subcommand(
      "amortize", "Find each reference's own router shift, for --method amortized; what is there is kept");
  const auto flags = std::make_shared<AmortizeFlags>();
  command->add_flag("--json", flags->json, "Print one JSON document per message");
  AddOptimizationFlags(*command, &flags->optimization);
  for (const char* other :
       {"--method", "--k", "--epsilon", "--kernel", "--bandwidth", "--application", "--references", "--alpha",
        "--offset", "--return-pathways", "--collection", "--balance", "--neighborhoods", "--neighbor-source"}) {
    command->remove_option(command->get_option(other));
  }
  command->add_option("--collection", flags->collection, "The collection")->check(NotEmpty())->capture_default_str();
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return Amortize(chosen, *flags); }; });
}

}  // namespace

void AddRefsLearnCommands(CLI::App& refs, Session* session) {
  AddTune(refs, session);
  AddAmortize(refs, session);
}

}  // namespace c3po
