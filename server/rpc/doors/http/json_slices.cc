#include "server/rpc/doors/http/json_slices.h"

#include <cstddef>

namespace c3po {
namespace {

constexpr absl::string_view kSpace = " \t\r\n";

// Reads a text from its beginning; every step stays within it.
class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text) { SkipSpace(); }

  bool Take(char wanted) {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    SkipSpace();
    return true;
  }

  // One value, or a member's name.
  absl::string_view TakeValue() {
    const size_t begin = at_;
    int depth = 0;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (depth == 0 && (c == ',' || c == ':' || c == ']' || c == '}')) break;
      if (c == '"') {
        SkipString();
      } else {
        if (c == '[' || c == '{') ++depth;
        if (c == ']' || c == '}') --depth;
        ++at_;
      }
    }
    absl::string_view value = text_.substr(begin, at_ - begin);
    while (!value.empty() && kSpace.find(value.back()) != absl::string_view::npos) value.remove_suffix(1);
    return value;
  }

 private:
  void SkipSpace() {
    while (at_ < text_.size() && kSpace.find(text_[at_]) != absl::string_view::npos) ++at_;
  }
  void SkipString() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) ++at_;
    }
    if (at_ < text_.size()) ++at_;
  }

  const absl::string_view text_;
  size_t at_ = 0;
};

}  // namespace

void VisitMembers(absl::string_view object,
                  absl::FunctionRef<bool(absl::string_view key, absl::string_view value)> visit) {
  Scanner scanner(object);
  if (!scanner.Take('{')) return;
  do {
    const absl::string_view key = scanner.TakeValue();
    if (key.empty() || !scanner.Take(':')) return;
    if (!visit(key, scanner.TakeValue())) return;
  } while (scanner.Take(','));
}

void VisitElements(absl::string_view array, absl::FunctionRef<bool(absl::string_view value)> visit) {
  Scanner scanner(array);
  if (!scanner.Take('[')) return;
  do {
    const absl::string_view value = scanner.TakeValue();
    if (value.empty() || !visit(value)) return;
  } while (scanner.Take(','));
}

}  // namespace c3po
