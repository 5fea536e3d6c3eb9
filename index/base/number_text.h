#ifndef C3PO_INDEX_BASE_NUMBER_TEXT_H_
#define C3PO_INDEX_BASE_NUMBER_TEXT_H_

#include <string>

namespace c3po {

// The shortest decimal that reads back as the same number: 0.1, 1.0000001, 1e-08, nan, inf. For messages and files: six
// digits, as absl::StrCat writes, would tell 1.0000001 as 1. A float is written as a float: 0.1f is 0.1. Pure and
// thread-safe.
std::string NumberText(double value);
std::string NumberText(float value);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_NUMBER_TEXT_H_
