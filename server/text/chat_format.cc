#include "server/text/chat_format.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr absl::string_view kContent = "message['content']";

// The canonical output that writes a turn between two texts.
std::string Framed(absl::string_view open, absl::string_view close) {
  return absl::StrCat(open.empty() ? "" : absl::StrCat("'", open, "'+"), kContent,
                      close.empty() ? "" : absl::StrCat("+'", close, "'"));
}

// Ticks off what a template writes; a format is recognized when nothing is left.
class Outputs {
 public:
  explicit Outputs(const ChatTemplate& source) : left_(source.outputs) {}

  // Removes `output`; false when the template does not write it.
  bool Take(const std::string& output) {
    const auto found = std::find(left_.begin(), left_.end(), output);
    if (found == left_.end()) return false;
    left_.erase(found);
    return true;
  }
  bool TakeAll(std::initializer_list<std::string> outputs) {
    bool all = true;
    for (const std::string& output : outputs) all = Take(output) && all;
    return all;
  }
  // Removes an output that is one literal which starts and ends so; what stands between.
  std::optional<std::string> TakeLiteral(absl::string_view open, absl::string_view close) {
    for (auto output = left_.begin(); output != left_.end(); ++output) {
      absl::string_view text = *output;
      const bool literal = absl::ConsumePrefix(&text, "'") && absl::ConsumeSuffix(&text, "'");
      if (!literal || !absl::ConsumePrefix(&text, open) || !absl::ConsumeSuffix(&text, close)) continue;
      if (absl::StrContains(text, "'+") || absl::StrContains(text, "+'")) continue;  // Several terms.
      std::string between(text);
      left_.erase(output);
      return between;
    }
    return std::nullopt;
  }
  bool AllTaken() const { return left_.empty(); }

 private:
  std::vector<std::string> left_;
};

bool Asks(const ChatTemplate& source, absl::string_view condition) {
  return std::any_of(source.conditions.begin(), source.conditions.end(),
                     [&](const std::string& text) { return absl::StrContains(text, condition); });
}

bool Assigns(const ChatTemplate& source, absl::string_view name) {
  return std::any_of(source.assignments.begin(), source.assignments.end(),
                     [&](const ChatTemplate::Assignment& assignment) { return assignment.name == name; });
}

// Every variable is one whose part in the format is known.
bool AssignsOnly(const ChatTemplate& source, std::initializer_list<absl::string_view> names) {
  return std::all_of(source.assignments.begin(), source.assignments.end(), [&](const auto& assignment) {
    return std::find(names.begin(), names.end(), assignment.name) != names.end();
  });
}

// A condition on anything but the turns is one that no format has: on a variable that a request may set, say.
bool AsksOnlyOfTurns(const ChatTemplate& source) {
  constexpr absl::string_view kKnown =
      " message messages loop role content system_message loop_messages ns multi_step_tool last_query_index index "
      "index0 first last length reasoning_content startswith endswith and or not in is defined string none true false "
      "add_generation_prompt ";
  const auto known = [&](const std::string& condition) {
    bool quoted = false;
    for (size_t i = 0; i < condition.size();) {
      size_t end = i;
      while (end < condition.size() && (absl::ascii_isalnum(condition[end]) || condition[end] == '_')) ++end;
      const absl::string_view word = absl::string_view(condition).substr(i, end - i);
      const bool name = !word.empty() && !absl::ascii_isdigit(word[0]);
      if (name && !quoted && !absl::StrContains(kKnown, absl::StrCat(" ", word, " "))) return false;
      if (word.empty() && condition[end] == '\'') quoted = !quoted;
      i = std::max(end, i + 1);
    }
    return true;
  };
  return std::all_of(source.conditions.begin(), source.conditions.end(), known);
}

absl::string_view StripLineFeeds(absl::string_view text, bool front, bool back) {
  while (front && absl::ConsumePrefix(&text, "\n")) continue;
  while (back && absl::ConsumeSuffix(&text, "\n")) continue;
  return text;
}

}  // namespace

absl::StatusOr<ChatFormat> ChatFormat::FromTokenizerConfig(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const ChatTemplates templates, ChatTemplates::Read(path));
  return Recognize(templates);
}

absl::StatusOr<ChatFormat> ChatFormat::Recognize(const ChatTemplates& templates) {
  const absl::StatusOr<ChatTemplate> parsed = ChatTemplate::Parse(templates.standard);
  if (!parsed.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(templates.origin, ": chat_template ", parsed.status().message(), "; send a raw prompt"));
  }
  ChatFormat format;
  format.bos_token_ = templates.bos_token;
  format.eos_token_ = templates.eos_token;
  ChatTemplate turns = *parsed;
  const auto bos = std::find(turns.outputs.begin(), turns.outputs.end(), "bos_token");
  if (bos != turns.outputs.end()) {
    format.prefix_ = format.bos_token_;
    turns.outputs.erase(bos);
  }
  const bool of_turns = AsksOnlyOfTurns(turns);
  using Recognizer = bool (ChatFormat::*)(const ChatTemplate&);
  for (const auto& [name, recognizes] : {std::pair<const char*, Recognizer>("ChatML", &ChatFormat::RecognizeChatMl),
                                         {"Tulu", &ChatFormat::RecognizeTulu},
                                         {"Phi", &ChatFormat::RecognizePhi},
                                         {"Granite", &ChatFormat::RecognizeGranite},
                                         {"DeepSeek", &ChatFormat::RecognizeDeepSeek},
                                         {"Mixtral", &ChatFormat::RecognizeMixtral}}) {
    if (!of_turns || !(format.*recognizes)(turns)) continue;
    format.name_ = name;
    return format;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      templates.origin, ": chat_template is none of those recognized (ChatML, Tulu, Phi, Granite, DeepSeek, Mixtral); ",
      "send a raw prompt"));
}

bool ChatFormat::RecognizeChatMl(const ChatTemplate& source) {
  constexpr absl::string_view kAnyRole = "'<|im_start|>'+message['role']+'\n'+";
  const std::string whole_turn = absl::StrCat(kAnyRole, kContent, "+'<|im_end|>\n'");
  Outputs outputs(source);
  const std::optional<std::string> cue = outputs.TakeLiteral("<|im_start|>assistant\n", "");
  if (!cue.has_value()) return false;
  outputs.Take("'<|im_start|>system\n'+messages[0]['content']+'<|im_end|>\n'");
  std::optional<std::string> default_system = outputs.TakeLiteral("<|im_start|>system\n", "<|im_end|>\n");
  bool turns = outputs.Take(whole_turn);
  const bool thinks = Assigns(source, "ns['last_query_index']") || Assigns(source, "reasoning_content");
  if (thinks) {
    turns = outputs.Take(absl::StrCat(kAnyRole, "content+'<|im_end|>\n'")) || turns;
    turns = outputs.TakeAll({absl::StrCat("'<|im_start|>'+message['role']+'\n<think>\n'+reasoning_content.strip('\n')+",
                                          "'\n</think>\n\n'+content.lstrip('\n')"),
                             absl::StrCat(kAnyRole, "content"), "'<|im_end|>\n'"}) &&
            turns;
  } else if (!turns) {  // The end of a turn under a condition of its own, which a request for a next turn fulfills.
    turns = outputs.TakeAll({absl::StrCat(kAnyRole, kContent), "'<|im_end|>\n'"}) && Asks(source, "not loop['last']");
  }
  const bool known = thinks ? AssignsOnly(source, {"content", "reasoning_content", "ns", "ns['last_query_index']",
                                                   "ns['multi_step_tool']", "index"})
                            : AssignsOnly(source, {});
  if (!turns || !outputs.AllTaken() || !known) return false;
  system_ = {"<|im_start|>system\n", "<|im_end|>\n"};
  user_ = {"<|im_start|>user\n", "<|im_end|>\n"};
  assistant_ = {"<|im_start|>assistant\n", "<|im_end|>\n"};
  last_assistant_close_ = assistant_.close;
  cue_ = absl::StrCat("<|im_start|>assistant\n", *cue);
  default_system_ = std::move(default_system).value_or("");
  cue_after_assistant_ = !Asks(source, "messages[-1]['role']!='assistant'");
  takes_off_thoughts_ = thinks;
  return true;
}

bool ChatFormat::RecognizeTulu(const ChatTemplate& source) {
  Outputs outputs(source);
  if (!outputs.TakeAll({Framed("<|system|>\n", "\n"), Framed("<|user|>\n", "\n"), "'<|assistant|>\n'"})) return false;
  const std::string closed = absl::StrCat(Framed("<|assistant|>\n", ""), "+eos_token");
  const bool line = outputs.Take(absl::StrCat(closed, "+'\n'"));
  const bool bare = outputs.Take(closed);
  if (!(line || bare) || !outputs.AllTaken() || !AssignsOnly(source, {})) return false;
  if (line && bare && !Asks(source, "loop['last']")) return false;
  system_ = {"<|system|>\n", "\n"};
  user_ = {"<|user|>\n", "\n"};
  assistant_ = {"<|assistant|>\n", absl::StrCat(eos_token_, line ? "\n" : "")};
  last_assistant_close_ = bare ? eos_token_ : assistant_.close;
  cue_ = "<|assistant|>\n";
  return true;
}

bool ChatFormat::RecognizePhi(const ChatTemplate& source) {
  Outputs outputs(source);
  const bool any_role = outputs.Take(absl::StrCat("'<|'+message['role']+'|>\n'+", kContent, "+'<|end|>\n'"));
  const bool roles = outputs.TakeAll(
      {Framed("<|system|>\n", "<|end|>\n"), Framed("<|user|>\n", "<|end|>\n"), Framed("<|assistant|>\n", "<|end|>\n")});
  if (any_role == roles || !outputs.Take("'<|assistant|>\n'") || !outputs.AllTaken()) return false;
  if (!AssignsOnly(source, {})) return false;
  system_ = {"<|system|>\n", "<|end|>\n"};
  user_ = {"<|user|>\n", "<|end|>\n"};
  assistant_ = {"<|assistant|>\n", "<|end|>\n"};
  last_assistant_close_ = assistant_.close;
  cue_ = "<|assistant|>\n";
  drops_empty_system_ = Asks(source, "message['role']=='system' and message['content']");
  return true;
}

bool ChatFormat::RecognizeGranite(const ChatTemplate& source) {
  const auto open = [](absl::string_view role) { return absl::StrCat("<|start_of_role|>", role, "<|end_of_role|>"); };
  const std::string close = "<|end_of_text|>\n";
  Outputs outputs(source);
  const bool any_role =
      outputs.Take(absl::StrCat("'<|start_of_role|>'+message['role']+'<|end_of_role|>'+", kContent, "+'", close, "'"));
  const bool roles =
      outputs.TakeAll({Framed(open("system"), close), Framed(open("user"), close), Framed(open("assistant"), close)});
  if (any_role == roles || !outputs.Take(absl::StrCat("'", open("assistant"), "'"))) return false;
  const bool sets_system = outputs.Take(absl::StrCat("'", open("system"), "'+system_message+'", close, "'"));
  if (!outputs.AllTaken() || !AssignsOnly(source, {"system_message", "loop_messages"})) return false;
  if (sets_system != Assigns(source, "system_message") || (sets_system && !ReadGraniteSystem(source))) return false;
  system_ = {open("system"), close};
  user_ = {open("user"), close};
  assistant_ = {open("assistant"), close};
  last_assistant_close_ = close;
  cue_ = open("assistant");
  cue_needs_turn_ = sets_system;
  return true;
}

// The default system message: a literal, a date in the midst of it at most, and literals added afterwards.
bool ChatFormat::ReadGraniteSystem(const ChatTemplate& source) {
  std::string text;
  std::string format;
  size_t date_at = 0;
  for (const ChatTemplate::Assignment& assignment : source.assignments) {
    if (assignment.name != "system_message") continue;
    for (const ChatTemplate::Term& term : assignment.sum) {
      absl::string_view rest = term.text;
      if (term.is_text) {
        text.append(term.text);
      } else if (absl::ConsumePrefix(&rest, "strftime_now('") && absl::ConsumeSuffix(&rest, "')")) {
        if (!format.empty() || rest.empty()) return false;
        format = std::string(rest);
        date_at = text.size();
      } else if (term.text != "messages[0]['content']" && term.text != "system_message") {
        return false;
      }
    }
  }
  default_system_ = std::move(text);
  date_format_ = std::move(format);
  date_at_ = date_at;
  return true;
}

bool ChatFormat::RecognizeDeepSeek(const ChatTemplate& source) {
  constexpr absl::string_view kEos = "<\uFF5Cend\u2581of\u2581sentence\uFF5C>";
  const std::pair<absl::string_view, absl::string_view> names[] = {{"User: ", "Assistant: "},
                                                                   {"<\uFF5CUser\uFF5C>", "<\uFF5CAssistant\uFF5C>"}};
  for (const auto& [user, assistant] : names) {
    Outputs outputs(source);
    const std::string user_close = absl::EndsWith(user, " ") ? "\n\n" : "";
    if (!outputs.TakeAll({Framed(user, user_close), Framed("", "\n\n")})) continue;
    const bool eos_variable = outputs.Take(absl::StrCat(Framed(assistant, ""), "+eos_token"));
    if (!eos_variable && !outputs.Take(Framed(assistant, kEos))) continue;
    const std::string cue(absl::StripSuffix(assistant, " "));
    if (!outputs.Take(absl::StrCat("'", cue, "'")) || !outputs.AllTaken() || !AssignsOnly(source, {})) continue;
    system_ = {"", "\n\n"};
    user_ = {std::string(user), user_close};
    assistant_ = {std::string(assistant), eos_variable ? eos_token_ : std::string(kEos)};
    last_assistant_close_ = assistant_.close;
    cue_ = cue;
    return true;
  }
  return false;
}

bool ChatFormat::RecognizeMixtral(const ChatTemplate& source) {
  for (const std::string space : {"", " "}) {
    Outputs outputs(source);
    const std::string open = absl::StrCat(space, "[INST] ");
    if (!outputs.Take(Framed(open, " [/INST]"))) continue;
    if (!outputs.Take(absl::StrCat(Framed(space, ""), "+eos_token"))) continue;
    const bool system = outputs.Take(absl::StrCat("'", open, "'+system_message+'\n\n'+", kContent, "+' [/INST]'"));
    if (!outputs.AllTaken() || !AssignsOnly(source, {"system_message", "loop_messages"})) continue;
    if (system != Assigns(source, "system_message")) continue;
    user_ = {open, " [/INST]"};
    assistant_ = {space, eos_token_};
    instructions_ = true;
    instructions_take_system_ = system;
    return true;
  }
  return false;
}

absl::StatusOr<std::string> ChatFormat::Render(absl::Span<const ChatTurn> turns, absl::Time now) const {
  if (turns.empty()) return absl::InvalidArgumentError("chat.messages: is empty");
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string& role = turns[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("chat.messages[", i, "].role: \"", role, "\" is none of system, user, assistant"));
    }
  }
  if (instructions_) return RenderInstructions(turns);
  return RenderTurns(turns, now);
}

absl::StatusOr<std::string> ChatFormat::RenderInstructions(absl::Span<const ChatTurn> turns) const {
  const size_t first = instructions_take_system_ && turns[0].role == "system" ? 1 : 0;
  std::string prompt = prefix_;
  for (size_t i = first; i < turns.size(); ++i) {
    const bool user = turns[i].role == "user";
    if (user != ((i - first) % 2 == 0) || turns[i].role == "system") {
      return absl::InvalidArgumentError(absl::StrCat("chat.messages[", i, "].role: \"", turns[i].role,
                                                     "\" out of turn: this model's format has ",
                                                     instructions_take_system_ ? "an optional system turn, then " : "",
                                                     "user and assistant by turns, the user first"));
    }
    const Frame& frame = user ? user_ : assistant_;
    const std::string system = i == first && first == 1 ? absl::StrCat(turns[0].content, "\n\n") : "";
    absl::StrAppend(&prompt, frame.open, system, turns[i].content, frame.close);
  }
  return prompt;
}

std::string ChatFormat::RenderTurns(absl::Span<const ChatTurn> turns, absl::Time now) const {
  std::string prompt = prefix_;
  if (turns[0].role != "system" && !default_system_.empty()) {
    std::string message = default_system_;
    if (!date_format_.empty()) message.insert(date_at_, absl::FormatTime(date_format_, now, absl::LocalTimeZone()));
    absl::StrAppend(&prompt, system_.open, message, system_.close);
  }
  size_t last_user = turns.size() - 1;
  for (size_t i = 0; i < turns.size(); ++i) {
    const bool tool_response =
        absl::StartsWith(turns[i].content, "<tool_response>") && absl::EndsWith(turns[i].content, "</tool_response>");
    if (turns[i].role == "user" && !tool_response) last_user = i;
  }
  for (size_t i = 0; i < turns.size(); ++i) {
    const ChatTurn& turn = turns[i];
    const bool last = i + 1 == turns.size();
    const bool assistant = turn.role == "assistant";
    if (drops_empty_system_ && turn.role == "system" && turn.content.empty()) continue;
    const Frame& frame = assistant ? assistant_ : turn.role == "user" ? user_ : system_;
    prompt.append(frame.open);
    prompt.append(takes_off_thoughts_ && assistant ? ThoughtsApart(turn.content, i > last_user, last) : turn.content);
    prompt.append(assistant && last ? last_assistant_close_ : frame.close);
  }
  if (cue_needs_turn_ && turns.size() == 1 && turns[0].role == "system") return prompt;
  if (cue_after_assistant_ || turns.back().role != "assistant") prompt.append(cue_);
  return prompt;
}

std::string ChatFormat::ThoughtsApart(const std::string& content, bool after_last_query, bool last) {
  constexpr absl::string_view kOpen = "<think>";
  constexpr absl::string_view kClose = "</think>";
  absl::string_view thoughts;
  absl::string_view answer = content;
  if (const size_t first_close = answer.find(kClose); first_close != absl::string_view::npos) {
    thoughts = StripLineFeeds(answer.substr(0, first_close), false, true);
    const size_t open = thoughts.rfind(kOpen);
    if (open != absl::string_view::npos) thoughts.remove_prefix(open + kOpen.size());
    thoughts = StripLineFeeds(thoughts, true, false);
    answer = StripLineFeeds(answer.substr(answer.rfind(kClose) + kClose.size()), true, false);
  }
  if (!after_last_query || (!last && thoughts.empty())) return std::string(answer);
  return absl::StrCat(kOpen, "\n", StripLineFeeds(thoughts, true, true), "\n", kClose, "\n\n",
                      StripLineFeeds(answer, true, false));
}

}  // namespace c3po
