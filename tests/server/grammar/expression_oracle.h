#ifndef C3PO_TESTS_SERVER_GRAMMAR_EXPRESSION_ORACLE_H_
#define C3PO_TESTS_SERVER_GRAMMAR_EXPRESSION_ORACLE_H_

// A plain matcher of regular expressions by partial derivatives (Antimirov, TCS 155(2), 1996): what is left of an
// expression after a text. Slow, and written for no other purpose than to be right.

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace c3po {

// A regular expression over bytes, none of whose parts matches nothing at all. Equal keys are equal expressions.
struct Expression {
  enum class Kind { kEmpty, kByte, kThen, kOr, kMany } kind;
  std::string key;
  char byte = 0;
  std::shared_ptr<const Expression> left = nullptr, right = nullptr;
};
using ExpressionPtr = std::shared_ptr<const Expression>;

inline ExpressionPtr Empty() { return std::make_shared<Expression>(Expression{Expression::Kind::kEmpty, "_"}); }
inline ExpressionPtr Byte(char byte) {
  return std::make_shared<Expression>(Expression{Expression::Kind::kByte, std::string(1, byte), byte});
}
inline ExpressionPtr Or(const ExpressionPtr& a, const ExpressionPtr& b) {
  return std::make_shared<Expression>(
      Expression{Expression::Kind::kOr, absl::StrCat("(", a->key, "|", b->key, ")"), 0, a, b});
}
inline ExpressionPtr Then(const ExpressionPtr& a, const ExpressionPtr& b) {
  if (a->kind == Expression::Kind::kEmpty) return b;
  return std::make_shared<Expression>(
      Expression{Expression::Kind::kThen, absl::StrCat("(", a->key, ".", b->key, ")"), 0, a, b});
}
inline ExpressionPtr Many(const ExpressionPtr& a) {
  return std::make_shared<Expression>(Expression{Expression::Kind::kMany, absl::StrCat(a->key, "*"), 0, a});
}

inline bool TakesEmpty(const ExpressionPtr& e) {
  switch (e->kind) {
    case Expression::Kind::kThen:
      return TakesEmpty(e->left) && TakesEmpty(e->right);
    case Expression::Kind::kOr:
      return TakesEmpty(e->left) || TakesEmpty(e->right);
    case Expression::Kind::kByte:
      return false;
    default:
      return true;
  }
}

// What may be left of an expression, by key: no more of them than it has parts. None: no text of it is left.
using State = std::map<std::string, ExpressionPtr>;

inline State After(const ExpressionPtr& e, char byte) {
  State state;
  const auto add = [&state](const State& others, const ExpressionPtr& then) {
    for (const auto& [key, one] : others) {
      const ExpressionPtr rest = then == nullptr ? one : Then(one, then);
      state[rest->key] = rest;
    }
  };
  switch (e->kind) {
    case Expression::Kind::kByte:
      if (e->byte == byte) state["_"] = Empty();
      break;
    case Expression::Kind::kThen:
      add(After(e->left, byte), e->right);
      if (TakesEmpty(e->left)) add(After(e->right, byte), nullptr);
      break;
    case Expression::Kind::kOr:
      add(After(e->left, byte), nullptr);
      add(After(e->right, byte), nullptr);
      break;
    case Expression::Kind::kMany:
      add(After(e->left, byte), e);
      break;
    case Expression::Kind::kEmpty:
      break;
  }
  return state;
}

// The states of texts, each found once.
class States {
 public:
  explicit States(const ExpressionPtr& start) { known_[""] = {{start->key, start}}; }
  const State& Of(const std::string& text) {
    const auto found = known_.find(text);
    if (found != known_.end()) return found->second;
    State state;
    for (const auto& [key, one] : Of(text.substr(0, text.size() - 1))) state.merge(After(one, text.back()));
    return known_[text] = std::move(state);
  }

 private:
  std::map<std::string, State> known_;
};

// An expression, and how it is written.
inline std::pair<ExpressionPtr, std::string> RandomExpression(std::mt19937& random, int depth) {
  if (depth == 0 || random() % 5 == 0) {
    if (random() % 3 == 0) return {Or(Byte('a'), Or(Byte('b'), Byte('c'))), "[a-c]"};
    const char byte = static_cast<char>('a' + random() % 4);
    return {Byte(byte), std::string(1, byte)};
  }
  auto [left, left_text] = RandomExpression(random, depth - 1);
  switch (random() % 6) {
    case 0:
      return {Many(left), absl::StrCat("(", left_text, ")*")};
    case 1:
      return {Or(left, Empty()), absl::StrCat("(", left_text, ")?")};
    case 2: {  // {1,3}
      const ExpressionPtr maybe = Or(left, Empty());
      return {Then(left, Then(maybe, maybe)), absl::StrCat("(", left_text, "){1,3}")};
    }
    default: {
      auto [right, right_text] = RandomExpression(random, depth - 1);
      if (random() % 2 == 0) return {Or(left, right), absl::StrCat("(", left_text, "|", right_text, ")")};
      return {Then(left, right), absl::StrCat("(", left_text, ")(", right_text, ")")};
    }
  }
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_GRAMMAR_EXPRESSION_ORACLE_H_
