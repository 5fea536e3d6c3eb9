#include "server/text/chat_template.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/template_lexer.h"

// Three passes: Lexer cuts the source into tags of tokens, doing what Jinja does to the white space around them;
// Program walks the tags, keeping a stack of open blocks to know which can be reached; the expressions that remain are
// spelled canonically.

namespace c3po {
namespace {

// What a request of this service never has.
bool IsAbsent(const TemplateToken& token) {
  for (const char* name :
       {"tools", "documents", "controls", "tool_calls", "available_tools", "custom_tools", "builtin_tools", "functions",
        "citations", "enable_thinking", "thinking", "reasoning_content"}) {
    // A local variable called reasoning_content is one of the template's own.
    const bool as_key = token.kind == TemplateToken::Kind::kString;
    if (token.text == name && (as_key || token.text != "reasoning_content")) return true;
  }
  return false;
}

constexpr std::array<absl::string_view, 3> kRoles = {"system", "user", "assistant"};
using Roles = unsigned;  // A bit for each of kRoles.
constexpr Roles kAllRoles = 7;

enum class Truth { kFalse, kUnknown, kTrue };

Truth Negate(Truth truth) {
  return truth == Truth::kTrue ? Truth::kFalse : truth == Truth::kFalse ? Truth::kTrue : Truth::kUnknown;
}

// Three-valued logic over and, or, not; comparisons are told from their spelling.
class Condition {
 public:
  // `role` is that of the turn at hand.
  Condition(const TemplateTokens& tokens, absl::string_view role) : tokens_(tokens), role_(role) {}
  Truth Evaluate() { return Or(0); }

 private:
  static constexpr int kDepthMax = 50;

  bool At(absl::string_view word) const { return at_ < tokens_.size() && tokens_[at_].Is(word); }
  bool AtEnd() const { return at_ >= tokens_.size() || At("and") || At("or") || At(")"); }

  Truth Or(int depth) {
    Truth truth = And(depth);
    while (At("or")) {
      ++at_;
      truth = std::max(truth, And(depth));
    }
    return truth;
  }

  Truth And(int depth) {
    Truth truth = Not(depth);
    while (At("and")) {
      ++at_;
      truth = std::min(truth, Not(depth));
    }
    return truth;
  }

  Truth Not(int depth) {
    bool negated = false;
    for (; At("not"); ++at_) negated = !negated;
    const Truth truth = Comparison(depth);
    return negated ? Negate(truth) : truth;
  }

  Truth Comparison(int depth) {
    if (At("(") && depth < kDepthMax) {
      ++at_;
      const Truth truth = Or(depth + 1);
      if (At(")")) ++at_;
      if (AtEnd()) return truth;
      TakeOperand();  // (a) != b, say.
      return Truth::kUnknown;
    }
    return Judge(TakeOperand());
  }

  // Up to the next and, or, or closing parenthesis of the same level.
  TemplateTokens TakeOperand() {
    TemplateTokens operand;
    for (int open = 0; at_ < tokens_.size() && (open > 0 || !AtEnd()); ++at_) {
      open += At("(") || At("[") ? 1 : At(")") || At("]") ? -1 : 0;
      operand.push_back(tokens_[at_]);
    }
    return operand;
  }

  Truth Judge(const TemplateTokens& operand) const {
    const std::string text = CanonicalText(operand);
    if (text == "true" || text == "add_generation_prompt" || text == "add_generation_prompt is defined") {
      return Truth::kTrue;
    }
    if (text == "false" || text == "add_generation_prompt is not defined") return Truth::kFalse;
    if (absl::EndsWith(text, "['content'] is string")) return Truth::kTrue;
    if (absl::EndsWith(text, "['content'] is none") || absl::EndsWith(text, "['content'] is not string")) {
      return Truth::kFalse;
    }
    for (const char* comparison : {"['role']=='", "['role']!='"}) {
      const size_t found = text.find(comparison);
      if (found == std::string::npos) continue;
      const std::string role = text.substr(found + 11);
      const Truth equal = absl::StartsWith(text, "message['role']")
                              ? (role == absl::StrCat(role_, "'") ? Truth::kTrue : Truth::kFalse)
                          : IsRole(role) ? Truth::kUnknown
                                         : Truth::kFalse;
      return absl::StrContains(comparison, "!") ? Negate(equal) : equal;
    }
    if (!std::any_of(operand.begin(), operand.end(), IsAbsent)) return Truth::kUnknown;
    if (absl::EndsWith(text, " is none") || absl::EndsWith(text, "==none")) return Truth::kTrue;
    // transformers passes tools and documents always, as none; what else is absent is not defined.
    const bool passed = absl::StartsWith(text, "tools is ") || absl::StartsWith(text, "documents is ");
    if (absl::EndsWith(text, " is defined")) return passed ? Truth::kUnknown : Truth::kFalse;
    if (absl::EndsWith(text, " is not defined")) return passed ? Truth::kUnknown : Truth::kTrue;
    return Truth::kFalse;
  }

  static bool IsRole(absl::string_view closed) {
    return std::any_of(kRoles.begin(), kRoles.end(), [&](auto role) { return closed == absl::StrCat(role, "'"); });
  }

  const TemplateTokens& tokens_;
  absl::string_view role_;
  size_t at_ = 0;
};

class Program {
 public:
  absl::Status Add(const TemplateTag& tag) {
    TemplateTokens tokens = SimplifyTokens(tag.tokens);
    for (TemplateToken& token : tokens) {
      if (token.kind == TemplateToken::Kind::kName && token.text == turn_name_) token.text = "message";
    }
    if (!tag.is_output) return Statement(std::move(tokens));
    if (live_ == 0) return absl::OkStatus();
    if (!tokens.empty() && tokens[0].Is("raise_exception")) {
      EndOutput();
      return absl::OkStatus();
    }
    if (!output_.empty()) output_.push_back({TemplateToken::Kind::kOther, "+"});
    output_.insert(output_.end(), tokens.begin(), tokens.end());
    return absl::OkStatus();
  }

  absl::StatusOr<ChatTemplate> Finish() {
    if (!blocks_.empty()) return absl::InvalidArgumentError("has a block without end");
    EndOutput();
    ChatTemplate result;
    // A variable that only ever names the turn's content is the content.
    const auto is_content = [](const TemplateTokens& set) { return set[0].text == "content"; };
    const auto content = std::find_if(sets_.begin(), sets_.end(), is_content);
    const bool alias = std::count_if(sets_.begin(), sets_.end(), is_content) == 1 &&
                       CanonicalText(*content) == "content=message['content']";
    for (TemplateTokens& output : outputs_) {
      std::string text;
      for (size_t i = 0; i < output.size(); ++i) {
        if (alias && output[i].Is("content")) output[i].text = "message['content']";
      }
      text = CanonicalText(SimplifyTokens(output));
      if (std::find(result.outputs.begin(), result.outputs.end(), text) == result.outputs.end()) {
        result.outputs.push_back(std::move(text));
      }
    }
    for (const TemplateTokens& set : sets_) {
      if (!(alias && is_content(set))) result.assignments.push_back(ReadAssignment(set));
    }
    result.conditions = std::move(conditions_);
    return result;
  }

 private:
  struct Block {
    std::string end;         // "endif", say.
    Roles outer_live;        // For these the block itself is reached.
    Roles decided = 0;       // For these one of its branches so far is always taken.
    bool branching = false;  // The conversation chooses among its branches.
  };

  static ChatTemplate::Assignment ReadAssignment(const TemplateTokens& set) {
    size_t equals = 1;
    while (!set[equals].Is("=")) ++equals;
    ChatTemplate::Assignment assignment{CanonicalText(TemplateTokens(set.begin(), set.begin() + equals)), {}};
    TemplateTokens term;
    const auto end_term = [&] {
      const bool is_text = term.size() == 1 && term[0].kind == TemplateToken::Kind::kString;
      assignment.sum.push_back({is_text, is_text ? term[0].text : CanonicalText(term)});
      term.clear();
    };
    int open = 0;
    for (size_t i = equals + 1; i < set.size(); ++i) {
      open += set[i].Is("(") || set[i].Is("[") ? 1 : set[i].Is(")") || set[i].Is("]") ? -1 : 0;
      if (open == 0 && set[i].Is("+")) {
        end_term();
      } else {
        term.push_back(set[i]);
      }
    }
    end_term();
    return assignment;
  }

  void EndOutput() {
    if (!output_.empty()) outputs_.push_back(std::move(output_));
    output_.clear();
  }

  void Branch(Block* block, const TemplateTokens& tokens) {
    const Roles open = block->outer_live & ~block->decided;
    live_ = 0;
    bool unknown = false;
    for (size_t i = 0; i < kRoles.size(); ++i) {
      const Roles bit = open & (Roles{1} << i);
      if (bit == 0) continue;
      const Truth truth = Condition(tokens, kRoles[i]).Evaluate();
      unknown = unknown || truth == Truth::kUnknown;
      if (truth != Truth::kFalse) live_ |= bit;
      if (truth == Truth::kTrue) block->decided |= bit;
    }
    if (unknown || (live_ != 0 && live_ != open)) conditions_.push_back(CanonicalText(tokens));
    block->branching = block->branching || unknown || (live_ != 0 && live_ != block->outer_live);
    if (block->branching) EndOutput();
  }

  absl::Status Statement(TemplateTokens tokens) {
    if (tokens.empty() || tokens[0].kind != TemplateToken::Kind::kName)
      return absl::InvalidArgumentError("has an empty tag");
    const std::string word = tokens[0].text;
    tokens.erase(tokens.begin());
    if (word == "if") {
      blocks_.push_back({"endif", live_});
      Branch(&blocks_.back(), tokens);
    } else if (word == "elif" || word == "else") {
      if (blocks_.empty()) return absl::InvalidArgumentError(absl::StrCat("has ", word, " outside of a block"));
      if (blocks_.back().end == "endfor") {
        live_ = 0;  // A loop over no turns.
      } else {
        Branch(&blocks_.back(), word == "else" ? TemplateTokens{{TemplateToken::Kind::kName, "true"}} : tokens);
      }
    } else if (word == "for") {
      OpenLoop(tokens);
    } else if (word == "macro" || (word == "set" && !HasEquals(tokens))) {
      blocks_.push_back({absl::StrCat("end", word), live_});
      live_ = 0;
    } else if (word == "set") {
      const bool ignored = IsAbsent(tokens[0]) || tokens[0].Is("add_generation_prompt") || tokens[0].Is("=");
      if (live_ != 0 && !ignored) sets_.push_back(std::move(tokens));
    } else if (absl::StartsWith(word, "end") && word != "endgeneration") {
      if (blocks_.empty() || blocks_.back().end != word) {
        return absl::InvalidArgumentError(absl::StrCat("has ", word, " where no such block is open"));
      }
      if (blocks_.back().branching) EndOutput();
      live_ = blocks_.back().outer_live;
      blocks_.pop_back();
    } else if (word != "generation" && word != "endgeneration") {
      return absl::InvalidArgumentError(absl::StrCat("has the statement \"", word, "\", which is not known"));
    }
    return absl::OkStatus();
  }

  static bool HasEquals(const TemplateTokens& tokens) {
    return std::any_of(tokens.begin(), tokens.end(), [](const TemplateToken& token) { return token.Is("="); });
  }

  void OpenLoop(const TemplateTokens& tokens) {
    blocks_.push_back({"endfor", live_, 0, live_ != 0});
    if (live_ != 0) EndOutput();
    if (std::any_of(tokens.begin(), tokens.end(), IsAbsent)) live_ = 0;
    const bool over_turns =
        tokens.size() >= 3 && tokens[1].Is("in") && (tokens[2].Is("messages") || tokens[2].Is("loop_messages"));
    if (live_ != 0 && over_turns) turn_name_ = tokens[0].text;
  }

  Roles live_ = kAllRoles;  // Of turns that reach this place.
  std::vector<Block> blocks_;
  std::string turn_name_ = "message";
  TemplateTokens output_;  // Of tags in a row.
  std::vector<TemplateTokens> outputs_;
  std::vector<TemplateTokens> sets_;
  std::vector<std::string> conditions_;
};

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(absl::string_view source) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<TemplateTag> tags, ReadTemplateTags(source));
  Program program;
  for (const TemplateTag& tag : tags) C3PO_RETURN_IF_ERROR(program.Add(tag));
  return program.Finish();
}

}  // namespace c3po
