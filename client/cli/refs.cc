#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/terminal.h"
#include "client/eval/option_setting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kPromptWidth = 60;

struct RefsFlags {
  bool json = false;
  std::string collection;
  std::string text;
  std::string id;
  std::vector<std::string> ids;
  std::optional<uint32_t> k;
  bool successful_only = false;
  std::optional<uint64_t> min_generation;
  std::string filter;  // JSON; empty: none
  uint64_t limit = 0;  // 0: all
  uint32_t page_size = 100;
  bool pathway = false;
  bool yes = false;
  bool missing_ok = false;
};

const char* RightOrWrong(const v1::Reference& reference) { return reference.successful() ? "right" : "wrong"; }

absl::Status Search(Session& session, const RefsFlags& flags) {
  v1::SearchReferencesRequest request;
  request.set_collection(flags.collection.empty() ? "default" : flags.collection);
  request.set_text(flags.text);
  if (flags.k) request.set_k(*flags.k);
  if (flags.successful_only) request.set_successful_only(true);
  if (flags.min_generation) request.set_min_index_generation(*flags.min_generation);
  if (!flags.filter.empty()) {
    v1::OptimizationOptions options;
    C3PO_RETURN_IF_ERROR(SetOption("filter", flags.filter, &options));
    *request.mutable_filter() = options.filter();
  }
  C3PO_ASSIGN_OR_RETURN(const v1::SearchReferencesResponse response,
                        session.client->SearchReferences(request, session.call_options()));
  if (flags.json) return PrintJsonLine(response);
  Table table("rlrlll");
  table.AddRow({"#", "id", "distance", "model was", "prompt", "answer"});
  int number = 0;
  for (const auto& hit : response.hits()) {
    const v1::Reference& reference = hit.reference();
    table.AddRow({absl::StrCat(++number), Snippet(reference.id(), 40), absl::StrFormat("%.4f", hit.distance()),
                  RightOrWrong(reference), Snippet(reference.sample().prompt(), kPromptWidth),
                  Snippet(reference.sample().answer(), 24)});
  }
  absl::PrintF("%s", table.Render(session.terminal));
  return absl::OkStatus();
}

absl::Status List(Session& session, const RefsFlags& flags) {
  v1::ListReferencesRequest request;
  request.set_collection(flags.collection);
  request.set_page_size(flags.page_size);
  // With --json a line per reference as it comes; a table needs all of them to align.
  Table table("lllll");
  table.AddRow({"id", "collection", "model was", "prompt", "answer"});
  uint64_t count = 0;
  absl::Status printed;
  C3PO_RETURN_IF_ERROR(session.client->ForEachReference(
      request,
      [&](const v1::Reference& reference) {
        ++count;
        if (flags.json) {
          printed = PrintJsonLine(reference);
        } else {
          table.AddRow({Snippet(reference.id(), 40), Snippet(reference.collection(), 24), RightOrWrong(reference),
                        Snippet(reference.sample().prompt(), kPromptWidth), Snippet(reference.sample().answer(), 24)});
        }
        return printed.ok() && (flags.limit == 0 || count < flags.limit);
      },
      session.call_options()));
  if (!flags.json) absl::PrintF("%s", table.Render(session.terminal));
  return printed;
}

absl::Status Get(Session& session, const RefsFlags& flags) {
  v1::GetReferenceRequest request;
  request.set_id(flags.id);
  if (flags.pathway) request.set_include_pathway(true);
  C3PO_ASSIGN_OR_RETURN(const v1::GetReferenceResponse response,
                        session.client->GetReference(request, session.call_options()));
  const v1::Reference& reference = response.reference();
  if (flags.json) return PrintJsonLine(reference);
  Table table("ll");
  table.AddRow({"id", reference.id()});
  table.AddRow({"collection", Snippet(reference.collection(), 80)});
  table.AddRow({"model was", RightOrWrong(reference)});
  table.AddRow({"created", absl::FormatTime(absl::RFC3339_sec, absl::FromUnixSeconds(reference.created_unix_seconds()),
                                            absl::UTCTimeZone())});
  table.AddRow({"model", reference.model_digest()});
  table.AddRow({"embedder", reference.embedder_digest()});
  for (const auto& [name, value] : reference.sample().metadata()) {
    table.AddRow({Snippet(name, 24), Snippet(value, 100)});
  }
  table.AddRow({"choices", Snippet(absl::StrJoin(reference.sample().choices(), " |"), 200)});
  table.AddRow({"answer", Snippet(reference.sample().answer(), 200)});
  absl::PrintF("%s\n%s\n", table.Render(session.terminal), WithoutControls(reference.sample().prompt()));
  if (reference.pathway_size() == 0 || reference.experts() == 0) return absl::OkStatus();
  absl::PrintF("\npathway: %d layers of %d experts\n", reference.moe_layers(), reference.experts());
  for (int i = 0; i < reference.pathway_size(); ++i) {
    const bool row_ends = (i + 1) % static_cast<int>(reference.experts()) == 0;
    absl::PrintF("%.4f%c", reference.pathway(i), row_ends ? '\n' : ' ');
  }
  return absl::OkStatus();
}

absl::Status Delete(Session& session, const RefsFlags& flags) {
  v1::DeleteReferencesRequest request;
  for (const std::string& id : flags.ids) request.add_ids(id);
  request.set_collection(flags.collection);
  C3PO_ASSIGN_OR_RETURN(const v1::DeleteReferencesResponse response,
                        session.client->DeleteReferences(request, session.call_options()));
  if (flags.json) {
    C3PO_RETURN_IF_ERROR(PrintJsonLine(response));
  } else {
    absl::PrintF("deleted %d\n", response.deleted());
  }
  if (flags.missing_ok) return absl::OkStatus();
  if (!flags.ids.empty() && response.not_found_size() > 0) {
    return absl::NotFoundError(absl::StrCat(response.not_found_size(), " of the ids ",
                                            response.not_found_size() == 1 ? "was" : "were",
                                            " not there: ", absl::StrJoin(response.not_found(), ", ")));
  }
  if (flags.ids.empty() && response.deleted() == 0)
    return absl::NotFoundError(absl::StrCat("collection ", flags.collection, " had no references"));
  return absl::OkStatus();
}

absl::Status Stats(Session& session, const RefsFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(const v1::GetStatsResponse response, session.client->GetStats(session.call_options()));
  if (flags.json) return PrintJsonLine(response);
  Table table("lrrrl");
  table.AddRow({"collection", "references", "successful", "usable", "profile"});
  for (const v1::CollectionStats& stats : response.collections()) {
    table.AddRow({Snippet(stats.collection(), 40), absl::StrCat(stats.references()), absl::StrCat(stats.successful()),
                  absl::StrCat(stats.usable()), stats.profile() ? "yes" : ""});
  }
  absl::PrintF("%sindex generation %d\n", table.Render(session.terminal), response.index_generation());
  return absl::OkStatus();
}

using RefsCommand = absl::Status (*)(Session&, const RefsFlags&);

CLI::App* AddRefs(CLI::App& refs, Session* session, const char* name, const char* help, RefsCommand run,
                  const std::shared_ptr<RefsFlags>& flags) {
  CLI::App* command = refs.add_subcommand(name, help);
  command->add_flag("--json", flags->json, "Print the answer as JSON");
  command->callback(
      [session, flags, run] { session->command = [flags, run](Session& chosen) { return run(chosen, *flags); }; });
  return command;
}

}  // namespace

void AddRefsCommand(CLI::App& app, Session* session) {
  CLI::App* refs = app.add_subcommand(
      "refs", "Reference samples: import, export, search, list, get, delete, stats; tune, amortize, profile");
  refs->require_subcommand(1);
  refs->fallthrough();
  AddRefsImportCommand(*refs, session);
  AddRefsExportCommand(*refs, session);
  AddRefsLearnCommands(*refs, session);
  AddRefsProfileCommands(*refs, session);

  const auto flags = std::make_shared<RefsFlags>();
  CLI::App* search = AddRefs(*refs, session, "search", "The references nearest to a text", Search, flags);
  search->add_option("text", flags->text, "The text")->required();
  search->add_option("--collection", flags->collection, "Where to look; default \"default\"");
  search->add_option("--k", flags->k, "How many; default 3");
  search->add_flag("--successful-only", flags->successful_only,
                   "Only those that the model answers correctly by itself");
  search->add_option("--min-generation", flags->min_generation,
                     "Wait until the server holds this generation of the references, as a change's answer names it");
  search->add_option("--filter", flags->filter,
                     "Only those whose metadata match: {\"must\": [{\"key\": \"language\", \"equals\": \"en\"}]}");

  CLI::App* list = AddRefs(*refs, session, "list", "All references; with --json one per line", List, flags);
  list->add_option("--collection", flags->collection, "Only this collection");
  list->add_option("--limit", flags->limit, "Stop after this many; 0: all");
  list->add_option("--page-size", flags->page_size, "References per call")->check(CLI::Range(1, 1000));

  CLI::App* get = AddRefs(*refs, session, "get", "One reference", Get, flags);
  get->add_option("id", flags->id, "Its id")->required();
  get->add_flag("--pathway", flags->pathway, "With its pathway");

  CLI::App* remove =
      AddRefs(*refs, session, "delete",
              "Delete references by id, or a whole collection; exit code 5 where one was not there", Delete, flags);
  CLI::Option* ids = remove->add_option("ids", flags->ids, "Ids");
  CLI::Option* yes = remove->add_flag("--yes", flags->yes, "Yes, the whole collection");
  CLI::Option* collection =
      remove->add_option("--collection", flags->collection, "The collection to delete whole; asks for --yes");
  collection->needs(yes)->excludes(ids);
  remove->add_flag("--missing-ok", flags->missing_ok, "What is not there is no failure");
  remove->callback([session, flags] {
    if (flags->ids.empty() && flags->collection.empty()) throw CLI::RequiredError("ids or --collection");
    session->command = [flags](Session& chosen) { return Delete(chosen, *flags); };
  });

  AddRefs(*refs, session, "stats", "Counts by collection", Stats, flags);
}

}  // namespace c3po
