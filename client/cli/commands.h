#ifndef C3PO_CLIENT_CLI_COMMANDS_H_
#define C3PO_CLIENT_CLI_COMMANDS_H_

#include <CLI/CLI.hpp>

#include "client/cli/session.h"

namespace c3po {

// Each adds one command to `app`; choosing it on the command line sets session->command. `session` outlives `app`.
void AddAskCommand(CLI::App& app, Session* session);
void AddChatCommand(CLI::App& app, Session* session);
void AddRefsCommand(CLI::App& app, Session* session);
void AddRefsExportCommand(CLI::App& refs, Session* session);  // Under `refs`.
void AddRefsImportCommand(CLI::App& refs, Session* session);  // Under `refs`.
void AddScoreCommand(CLI::App& app, Session* session);
void AddTokenizeCommand(CLI::App& app, Session* session);
void AddRefsLearnCommands(CLI::App& refs, Session* session);    // Under `refs`.
void AddRefsProfileCommands(CLI::App& refs, Session* session);  // Under `refs`.
void AddEvalCommand(CLI::App& app, Session* session);
void AddAblateCommand(CLI::App& app, Session* session);
void AddCalibrateCommand(CLI::App& app, Session* session);
void AddBenchCommand(CLI::App& app, Session* session);
void AddInfoCommand(CLI::App& app, Session* session);
void AddModelCommand(CLI::App& app, Session* session);
void AddStoreCommand(CLI::App& app, Session* session);
void AddReportCommand(CLI::App& app, Session* session);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_COMMANDS_H_
