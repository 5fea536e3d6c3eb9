// c3po: the command line of a c3po server. One file per command; exit codes in exit_code.h.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "client/cli/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/interrupt.h"
#include "client/cli/session.h"

namespace {

// The arguments as a shell takes them: in single quotes where they hold anything but letters, digits and a few marks.
std::string CommandLine(int argc, char** argv) {
  std::string line = "c3po";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool plain = !argument.empty() && argument.find_first_not_of(
                                                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                                "-_./,:=@%+") == std::string::npos;
    line += " ";
    if (plain) {
      line += argument;
      continue;
    }
    line += "'";
    for (const char c : argument) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += "'";
  }
  return line;
}

}  // namespace

int main(int argc, char** argv) {
  c3po::Session session;
  session.command_line = CommandLine(argc, argv);
  session.terminal = c3po::Terminal::Detect();

  CLI::App app(
      "Asks a c3po server: answers of a Mixture-of-Experts model whose expert pathway is optimized per request");
  app.name("c3po");
  app.footer(c3po::kExitCodeHelp);
  app.set_version_flag("--version", C3PO_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // The global flags may stand after the command too.
  app.add_option("--server", session.server, "host:port of the server")->envname("C3PO_SERVER")->capture_default_str();
  app.add_option("--timeout", session.timeout_seconds,
                 "Seconds that a call may take; 0: no limit. Default 300; none for refs import")
      ->check(CLI::NonNegativeNumber);
  c3po::AddAskCommand(app, &session);
  c3po::AddChatCommand(app, &session);
  c3po::AddRefsCommand(app, &session);
  c3po::AddScoreCommand(app, &session);
  c3po::AddEvalCommand(app, &session);
  c3po::AddAblateCommand(app, &session);
  c3po::AddCalibrateCommand(app, &session);
  c3po::AddBenchCommand(app, &session);
  c3po::AddTokenizeCommand(app, &session);
  c3po::AddInfoCommand(app, &session);
  c3po::AddReportCommand(app, &session);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version end parsing as well, with exit code 0.
    return app.exit(error) == 0 ? c3po::kExitOk : c3po::kExitUsage;
  }

  c3po::InterruptWatcher watcher(&session.cancellation);
  session.client = std::make_unique<c3po::Client>(c3po::InsecureChannel(session.server));
  const absl::Status status = session.command(session);
  if (status.ok()) return c3po::kExitOk;
  std::fflush(stdout);
  std::cerr << "c3po: " << status << std::endl;
  return c3po::ExitCodeOf(status);
}
