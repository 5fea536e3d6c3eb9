#include "index/base/number_text.h"

#include <charconv>

namespace c3po {
namespace {

template <typename Number>
std::string Shortest(Number value) {
  char text[32];  // A double takes 24 at most.
  return std::string(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

}  // namespace

std::string NumberText(double value) { return Shortest(value); }
std::string NumberText(float value) { return Shortest(value); }

}  // namespace c3po
