#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"

namespace c3po {
namespace {

struct InspectFlags {
  std::string folder;  // Or ORG/NAME.
  std::string revision;
  std::string program;
  bool json = false;
};

// The c3pod that was installed with this program, else the one that a shell would find.
std::string ServerProgram() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path beside = self.parent_path() / "c3pod";
  return !error && access(beside.c_str(), X_OK) == 0 ? beside.string() : "c3pod";
}

// Only the server knows what it loads: it is asked on this machine, and answers for this process. Returns only when it
// cannot be started.
absl::Status BecomeServerProgram(const InspectFlags& flags) {
  const std::string program = flags.program.empty() ? ServerProgram() : flags.program;
  // "./-x": a folder is no flag.
  const std::string folder = flags.folder.substr(0, 1) == "-" ? "./" + flags.folder : flags.folder;
  std::vector<const char*> arguments = {program.c_str(), "inspect", folder.c_str()};
  if (!flags.revision.empty()) arguments.insert(arguments.end(), {"--revision", flags.revision.c_str()});
  if (flags.json) arguments.push_back("--json");
  arguments.push_back(nullptr);
  execvp(program.c_str(), const_cast<char* const*>(arguments.data()));
  return absl::NotFoundError(absl::StrCat("cannot run ", program, ": ", std::strerror(errno),
                                          ". A model folder is inspected by c3pod: install it beside c3po, or name it "
                                          "with --c3pod"));
}

}  // namespace

void AddModelCommand(CLI::App& app, Session* session) {
  CLI::App* model = app.add_subcommand("model", "Model folders on this machine; asks no server");
  model->require_subcommand(1);
  CLI::App* inspect = model->add_subcommand("inspect",
                                            "Checks a model folder, or a model of the Hugging Face cache: family, "
                                            "memory needed, and what is unsupported; exit "
                                            "code 0 only if it would load, 1 if not");
  const auto flags = std::make_shared<InspectFlags>();
  inspect
      ->add_option("folder", flags->folder,
                   "A Hugging Face folder: config.json, *.safetensors, tokenizer.json; a GGUF file; or its name "
                   "ORG/NAME on the hub, "
                   "found in the hub's cache")
      ->required();
  inspect->add_option("--revision", flags->revision, "Branch, tag or commit of ORG/NAME; default: main");
  inspect->add_flag("--json", flags->json, "Print the answer as JSON");
  inspect->add_option("--c3pod", flags->program, "The server's program; default: beside this one, or in PATH");
  // Before main starts threads and blocks signals, which the other program would inherit.
  inspect->callback([session, flags] {
    const absl::Status status = BecomeServerProgram(*flags);
    session->command = [status](Session&) { return status; };
  });
}

}  // namespace c3po
