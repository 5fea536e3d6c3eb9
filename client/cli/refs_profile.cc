// c3po refs profile: what a collection holds beside its references, and the options that its requests get by default.

#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/eval/option_setting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ProfileFlags {
  std::string collection = "default";
  std::string json_text;  // or @FILE, or -
  std::vector<std::string> fields;
  std::string notes;
  bool json = false;
  bool missing_ok = false;
};

absl::Status Show(Session& session, const ProfileFlags& flags) {
  v1::GetCollectionRequest request;
  request.set_collection(flags.collection);
  C3PO_ASSIGN_OR_RETURN(const v1::GetCollectionResponse response,
                        session.client->GetCollection(request, session.call_options()));
  if (flags.json) return PrintJsonLine(response);
  Table table("ll");
  table.AddRow({"collection", Snippet(flags.collection, 80)});
  table.AddRow({"references", absl::StrCat(response.stats().references(), ", ", response.stats().successful(),
                                           " that the model answers right, ", response.stats().usable(), " usable")});
  table.AddRow({"profile", response.has_profile() ? DescribeOptions(response.profile()) : "none"});
  if (!response.profile_ignored().empty()) {
    table.AddRow({"profile is ignored", WithoutControls(response.profile_ignored())});
  }
  table.AddRow({"requests get", DescribeOptions(response.effective_optimization())});
  if (response.has_prior()) {
    const v1::PriorInfo& prior = response.prior();
    table.AddRow(
        {"prior", absl::StrCat("layers ", DescribeLayers(prior.critical_layers()), ", ", prior.references(),
                               " references", PriorAccuracies(prior), prior.usable() ? "" : ", of another model")});
  } else {
    table.AddRow({"prior", "none"});
  }
  table.AddRow(
      {"amortized shifts", absl::StrCat(response.amortized_shifts(),
                                        response.foreign_shifts() == 0
                                            ? ""
                                            : absl::StrCat(", and ", response.foreign_shifts(), " of another model"))});
  if (response.offsets_size() == 0) table.AddRow({"label offset", "none"});
  for (const v1::OffsetInfo& offset : response.offsets()) {
    table.AddRow({"label offset",
                  absl::StrCat(DescribeOffset(offset), offset.usable() ? "" : ", of another model or embedder")});
  }
  absl::PrintF("%s", table.Render(session.terminal));
  if (!response.profile_notes().empty()) absl::PrintF("  notes: %s\n", WithoutControls(response.profile_notes()));
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonArgument(const std::string& argument) {
  if (argument == "-") return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  if (argument.empty() || argument[0] != '@') return argument;
  std::ifstream file(argument.substr(1), std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(argument.substr(1), ": cannot be opened"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::Status Set(Session& session, const ProfileFlags& flags) {
  v1::SetProfileRequest request;
  request.set_collection(flags.collection);
  request.set_notes(flags.notes);
  if (!flags.json_text.empty()) {
    C3PO_ASSIGN_OR_RETURN(const std::string json, JsonArgument(flags.json_text));
    absl::StatusOr<v1::OptimizationOptions> options = ParseOptionsJson(json);
    if (!options.ok()) return absl::InvalidArgumentError(absl::StrCat("profile: ", options.status().message()));
    *request.mutable_profile() = *std::move(options);
  }
  for (const std::string& field : flags.fields) {
    const size_t equals = field.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("--set ", field, ": is not field=value"));
    }
    C3PO_RETURN_IF_ERROR(
        SetOption(field.substr(0, equals), absl::string_view(field).substr(equals + 1), request.mutable_profile()));
  }
  C3PO_RETURN_IF_ERROR(session.client->SetProfile(request, session.call_options()).status());
  absl::PrintF("collection %s: profile %s\n", flags.collection, DescribeOptions(request.profile()));
  return absl::OkStatus();
}

absl::Status Clear(Session& session, const ProfileFlags& flags) {
  v1::SetProfileRequest request;
  request.set_collection(flags.collection);
  C3PO_ASSIGN_OR_RETURN(const v1::SetProfileResponse response,
                        session.client->SetProfile(request, session.call_options()));
  if (response.removed()) absl::PrintF("collection %s: profile removed\n", flags.collection);
  if (response.removed() || flags.missing_ok) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("collection ", flags.collection, " has no profile"));
}

using ProfileCommand = absl::Status (*)(Session&, const ProfileFlags&);

CLI::App* Add(CLI::App& profile, Session* session, const char* name, const char* help, ProfileCommand run,
              const std::shared_ptr<ProfileFlags>& flags) {
  CLI::App* command = profile.add_subcommand(name, help);
  command->add_option("--collection", flags->collection, "The collection")->check(NotEmpty())->capture_default_str();
  command->callback(
      [session, flags, run] { session->command = [flags, run](Session& chosen) { return run(chosen, *flags); }; });
  return command;
}

}  // namespace

void AddRefsProfileCommands(CLI::App& refs, Session* session) {
  CLI::App* profile = refs.add_subcommand("profile", "The options that a collection's requests get by default");
  profile->require_subcommand(1);
  profile->fallthrough();
  const auto flags = std::make_shared<ProfileFlags>();
  Add(*profile, session, "show", "Profile, prior, amortized shifts and label offsets of a collection", Show, flags)
      ->add_flag("--json", flags->json, "Print the answer as JSON");
  CLI::App* set = Add(*profile, session, "set", "Store a profile", Set, flags);
  CLI::Option* json = set->add_option("json", flags->json_text, "OptimizationOptions as JSON, @FILE, or - for stdin");
  CLI::Option* fields =
      set->add_option("--set", flags->fields, "field=value; may be given several times")->allow_extra_args(false);
  set->add_option("--notes", flags->notes, "JSON to keep beside it");
  set->callback([session, flags, json, fields] {
    if (json->count() == 0 && fields->count() == 0) throw CLI::RequiredError("the profile's JSON or --set");
    session->command = [flags](Session& chosen) { return Set(chosen, *flags); };
  });
  Add(*profile, session, "clear", "Remove the profile; exit code 5 where there is none", Clear, flags)
      ->add_flag("--missing-ok", flags->missing_ok, "What is not there is no failure");
}

}  // namespace c3po
