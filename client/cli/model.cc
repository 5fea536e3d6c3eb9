// Commands about model folders, which c3pod answers on this machine.

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

struct QuantizeFlags {
  std::string from, to;  // `from` or ORG/NAME.
  std::string revision;
  std::string weights = "int4";
  std::string calibration, check;  // Text files.
  int check_window = 512;
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

// "./-x": a folder is no flag.
std::string FolderArgument(const std::string& folder) { return folder.substr(0, 1) == "-" ? "./" + folder : folder; }

// Only the server knows what it loads: it is asked on this machine, and answers for this process. `words`: c3pod's
// command, its folders and flags; `program`: c3pod, empty: ServerProgram(). Returns only when it cannot be started.
absl::Status BecomeServerProgram(const std::string& program, const std::vector<std::string>& words) {
  const std::string path = program.empty() ? ServerProgram() : program;
  std::vector<const char*> arguments = {path.c_str()};
  for (const std::string& word : words) arguments.push_back(word.c_str());
  arguments.push_back(nullptr);
  execvp(path.c_str(), const_cast<char* const*>(arguments.data()));
  return absl::NotFoundError(absl::StrCat("cannot run ", path, ": ", std::strerror(errno),
                                          ". Model folders are c3pod's to read: install it beside c3po, or name it "
                                          "with --c3pod"));
}

std::vector<std::string> WordsOf(const InspectFlags& flags) {
  std::vector<std::string> words = {"inspect", FolderArgument(flags.folder)};
  if (!flags.revision.empty()) words.insert(words.end(), {"--revision", flags.revision});
  if (flags.json) words.emplace_back("--json");
  return words;
}

std::vector<std::string> WordsOf(const QuantizeFlags& flags) {
  std::vector<std::string> words = {"quantize", FolderArgument(flags.from), "--weights", flags.weights};
  if (!flags.to.empty()) words.push_back(FolderArgument(flags.to));
  if (!flags.calibration.empty()) words.insert(words.end(), {"--calibration", flags.calibration});
  if (!flags.check.empty()) {
    words.insert(words.end(), {"--check", flags.check, "--check-window", absl::StrCat(flags.check_window)});
  }
  if (!flags.revision.empty()) words.insert(words.end(), {"--revision", flags.revision});
  if (flags.json) words.emplace_back("--json");
  return words;
}

// What both commands take.
template <typename Flags>
void AddSharedOptions(CLI::App& command, Session* session, const std::shared_ptr<Flags>& flags) {
  command.add_option("--revision", flags->revision, "Branch, tag or commit of ORG/NAME; default: main");
  command.add_flag("--json", flags->json, "Print the answer as JSON");
  command.add_option("--c3pod", flags->program, "The server's program; default: beside this one, or in PATH");
  // Before main starts threads and blocks signals, which the other program would inherit.
  command.callback([session, flags] {
    const absl::Status status = BecomeServerProgram(flags->program, WordsOf(*flags));
    session->command = [status](Session&) { return status; };
  });
}

void AddInspect(CLI::App& model, Session* session) {
  CLI::App* inspect = model.add_subcommand("inspect",
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
  AddSharedOptions(*inspect, session, flags);
}

void AddQuantize(CLI::App& model, Session* session) {
  CLI::App* quantize = model.add_subcommand(
      "quantize",
      "Writes a model folder with weights of 8 or 4 bits, as compressed-tensors packs them, which loads without "
      "quantizing; exit code 0 only if it is whole");
  const auto flags = std::make_shared<QuantizeFlags>();
  quantize
      ->add_option("from", flags->from, "A Hugging Face folder, or its name ORG/NAME on the hub, found in the cache")
      ->required();
  quantize->add_option("to", flags->to, "The folder to write; nothing may be there. Without it --check alone measures");
  quantize
      ->add_option("--weights", flags->weights, "Of experts and dense layers; attention and the LM head have 8 bits")
      ->check(CLI::IsMember({"int8", "int4"}))
      ->capture_default_str();
  quantize->add_option("--calibration", flags->calibration,
                       "A text file: the activations of its first 8,192 tokens say what columns weigh when scales are "
                       "chosen; closer to the original, and slower");
  CLI::Option* const check = quantize->add_option(
      "--check", flags->check,
      "A text file, on which both models are compared: perplexity, mean KL, share of equal greedy tokens");
  quantize
      ->add_option("--check-window", flags->check_window, "Tokens of a sequence, of which the second half is scored")
      ->check(CLI::Range(4, 1 << 20))
      ->capture_default_str()
      ->needs(check);
  AddSharedOptions(*quantize, session, flags);
}

}  // namespace

void AddModelCommand(CLI::App& app, Session* session) {
  CLI::App* model = app.add_subcommand("model", "Model folders on this machine; asks no server");
  model->require_subcommand(1);
  AddInspect(*model, session);
  AddQuantize(*model, session);
}

}  // namespace c3po
