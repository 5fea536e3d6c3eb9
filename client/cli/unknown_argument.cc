#include "client/cli/unknown_argument.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/nearest_name.h"

namespace c3po {
namespace {

std::vector<std::string> CommandsOf(const CLI::App& level) {
  std::vector<std::string> names;
  for (const CLI::App* command : level.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> FlagsOf(const CLI::App& level) {
  std::vector<std::string> names;
  for (const CLI::Option* option : level.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(absl::StrCat("--", name));
  }
  return names;
}

std::string DidYouMean(const std::string& written, const std::vector<std::string>& names) {
  const std::string nearest = NearestName(written, names);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?");
}

}  // namespace

std::string ExplainUnknownArgument(const CLI::App& app) {
  // The levels that were chosen: `c3po`, `refs`, `import`.
  std::vector<const CLI::App*> levels = {&app};
  while (!levels.back()->get_subcommands().empty()) levels.push_back(levels.back()->get_subcommands().front());
  const CLI::App& last = *levels.back();
  const auto commands = CommandsOf(last);
  for (const std::string& argument : app.remaining(/*recurse=*/true)) {
    if (argument.size() > 1 && argument[0] == '-') {
      const std::string flag = argument.substr(0, argument.find('='));
      std::vector<std::string> flags;
      for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
        for (std::string& name : FlagsOf(**level)) flags.push_back(std::move(name));
      }
      return absl::StrCat("unknown flag ", flag, DidYouMean(flag, flags));
    }
    if (!commands.empty()) {
      const std::string of = levels.size() > 1 ? absl::StrCat(" of ", last.get_name()) : "";
      return absl::StrCat("unknown command ", argument, of, DidYouMean(argument, commands), "\nCommands", of, ": ",
                          absl::StrJoin(commands, ", "));
    }
  }
  return "";
}

}  // namespace c3po
