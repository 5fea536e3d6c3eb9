#ifndef C3PO_SERVER_TEXT_BYTE_LEVEL_H_
#define C3PO_SERVER_TEXT_BYTE_LEVEL_H_

#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// GPT-2's alphabet for bytes (Radford et al. 2019, released with its encoder): the printable characters of Latin-1
// stand for themselves, the other 68 bytes in order for U+0100 to U+0143. So a vocabulary can be written as text while
// its pieces are arbitrary bytes. Pure and thread-safe.

// One character per byte.
std::string BytesToAlphabet(absl::string_view bytes);

// The inverse for one piece. A piece with a character outside the alphabet is no byte-level piece (an added token, say)
// and gives its own UTF-8 bytes. `piece` is valid UTF-8.
std::string AlphabetToBytes(absl::string_view piece);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_BYTE_LEVEL_H_
