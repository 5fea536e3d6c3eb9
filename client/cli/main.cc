// c3po: the command line of a c3po server. One file per command; exit codes in exit_code.h.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/cli/argument_check.h"
#include "client/cli/commands.h"
#include "client/cli/exit_code.h"
#include "client/cli/interrupt.h"
#include "client/cli/session.h"
#include "client/cli/unknown_argument.h"
#include "index/base/environment_names.h"
#include "index/base/host_port.h"
#include "index/base/standard_streams.h"
#include "index/base/status_macros.h"

namespace {

// The command as it could be typed again.
std::string CommandLine(int argc, char** argv) {
  std::string line = "c3po";
  for (int i = 1; i < argc; ++i) absl::StrAppend(&line, " ", c3po::ShellWord(argv[i]));
  return line;
}

void AddConnectionFlags(CLI::App& app, c3po::Session& session) {
  app.add_flag("--tls", session.tls, "Speak TLS with the server; implied by --tls-ca and --tls-cert");
  app.add_option("--tls-ca", session.tls_files.ca, "PEM file of who may sign the server's certificate; default: system")
      ->envname("C3PO_TLS_CA");
  app.add_option("--tls-cert", session.tls_files.cert, "PEM file of this client's own certificate (mutual TLS)")
      ->envname("C3PO_TLS_CERT");
  app.add_option("--tls-key", session.tls_files.key, "PEM file of its private key")->envname("C3PO_TLS_KEY");
  app.add_option("--token-file", session.token_file, "File with the token to call with; default: $C3PO_TOKEN");
  app.add_flag("--insecure-token", session.insecure_token,
               "Send the token without TLS to another machine: whoever listens on the way can take it")
      ->envname("C3PO_INSECURE_TOKEN");
  const char* token = std::getenv("C3PO_TOKEN");
  session.token = token != nullptr ? token : "";
}

absl::Status CheckServer(const std::string& server) {
  for (const char* scheme : {"http://", "https://"}) {
    if (absl::StartsWithIgnoreCase(server, scheme))
      return absl::InvalidArgumentError(absl::StrCat("--server: ", server, ": is host:port, without ", scheme));
  }
  const absl::Status status = c3po::CheckHostPort(server);
  return status.ok() ? status : absl::InvalidArgumentError(absl::StrCat("--server: ", status.message()));
}

absl::Status Connect(c3po::Session& session) {
  C3PO_RETURN_IF_ERROR(CheckServer(session.server));
  c3po::ClientOptions options;
  options.token = session.token;
  if (!session.token_file.empty()) {
    std::ifstream file(session.token_file);
    if (!file)
      return absl::InvalidArgumentError(absl::StrCat("--token-file: ", session.token_file, ": cannot be read"));
    if (!(file >> options.token))
      return absl::InvalidArgumentError(absl::StrCat("--token-file: ", session.token_file, ": holds no token"));
  }
  std::shared_ptr<grpc::Channel> channel;
  if (session.tls || !session.tls_files.ca.empty() || !session.tls_files.cert.empty() ||
      !session.tls_files.key.empty()) {
    C3PO_ASSIGN_OR_RETURN(channel, c3po::TlsChannel(session.server, session.tls_files));
  } else {
    if (!options.token.empty() && !session.insecure_token && !c3po::IsThisMachine(session.server)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--server: ", session.server,
                       " is another machine, and without TLS the token could be read on the "
                       "way: give --tls or --tls-ca, or --insecure-token to send it all the same"));
    }
    channel = c3po::InsecureChannel(session.server);
  }
  session.client = std::make_unique<c3po::Client>(std::move(channel), options);
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  c3po::OpenClosedStandardStreams();
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
                 "Seconds that a call may take; 0: no limit. Default 300; none for refs import and store backup")
      ->check(c3po::NumberIn(0, std::numeric_limits<double>::infinity()));
  AddConnectionFlags(app, session);
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
  c3po::AddModelCommand(app, &session);
  c3po::AddReportCommand(app, &session);
  c3po::AddStoreCommand(app, &session);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version end parsing as well, with exit code 0.
    const std::string unknown = error.get_exit_code() == 0 ? "" : c3po::ExplainUnknownArgument(app);
    if (!unknown.empty()) {
      std::cerr << "c3po: " << unknown << "\nRun with --help for more information." << std::endl;
      return c3po::kExitUsage;
    }
    return app.exit(error) == 0 ? c3po::kExitOk : c3po::kExitUsage;
  }

  for (const std::string& line : c3po::MisspelledClientVariables()) std::cerr << "c3po: warning: " << line << std::endl;
  c3po::InterruptWatcher watcher(&session.cancellation);
  absl::Status status = Connect(session);
  if (!status.ok()) {
    std::cerr << "c3po: " << status.message() << std::endl;
    return c3po::kExitUsage;
  }
  status = session.command(session);
  if (status.ok()) return c3po::kExitOk;
  std::fflush(stdout);
  std::cerr << "c3po: " << status << std::endl;
  return c3po::ExitCodeOf(status);
}
