#ifndef C3PO_SERVER_TEXT_OPEN_TEXT_H_
#define C3PO_SERVER_TEXT_OPEN_TEXT_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/text/regex.h"

namespace c3po {

// A segment of text of which only the beginning is known: `text`, and after it any text R, or none. It goes through the
// steps of a pre-tokenizer as a TextSegment does, in search of a safe cut.
//
// A place p of the text that was given is a safe cut if, for every R,
//   words(text + R) = A ++ words(text from p on + R),
// where A does not depend on R. Then what precedes p is encoded once, whatever follows. Steps keep two facts for it:
//   - A step *restarts* at p if its cuts behind p, for every R, are those it makes in the text from p on alone.
//   - A step *cuts* at p if p is one of its cuts for every R.
// If steps 1 to j restart at p and step j cuts there, p is safe: steps 1 to j give the same parts behind p, no part of
// theirs reaches over p, and the steps after j see parts one by one. A step that puts something before each part
// (ByteLevel's add_prefix_space, Metaspace's "always") sees a beginning at p in the one case and a middle in the other.
// It must not put anything before p's part if p lies inside its segment, and must if an earlier step cut there.
struct OpenText {
  static constexpr size_t kNowhere = ~size_t{0};

  // Nothing is known yet of `known`, whose offset i is the given text's place i.
  explicit OpenText(std::string known, bool starts_input, bool continues);

  // A safe cut.
  struct Cut {
    size_t place;
    bool is_start;  // What follows is encoded as a segment that starts there, not as the middle of one.
  };

  std::string text;
  // By byte of `text`: its place in the given text if a character begins and every step so far restarts there, else
  // kNowhere.
  std::vector<size_t> places;
  bool starts_input;  // As TextSegment's.
  bool continues;
  std::optional<Cut> cut;  // The last one found so far.

  // A step's cuts. `parts`: what it makes of `text` alone; the begins and ends before `sure` are its cuts whatever R
  // is. `whole`: where it does not restart, but at either end. Only the last part, which R may lengthen, is kept.
  void Narrow(absl::Span<const TextRange> parts, absl::Span<const TextRange> whole, size_t sure);
  // Each byte becomes the text that `rewritten` gives for it.
  void Rewrite(absl::FunctionRef<std::string(char)> rewritten);
  void Insert(absl::string_view prefix);  // At the beginning.
  // A step that puts something before each part has come.
  void MeetPrefix();
  // No step restarts anywhere from here on.
  void Close();

 private:
  bool met_prefix_ = false;
  bool cut_inside_prefixed_ = false;  // `cut` was found behind such a step.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_OPEN_TEXT_H_
