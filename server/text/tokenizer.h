#ifndef C3PO_SERVER_TEXT_TOKENIZER_H_
#define C3PO_SERVER_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// Text to token ids and back, as a Hugging Face tokenizer.json describes it, id for id what the `tokenizers` library
// gives (tests/golden/tokenizer). The stages, each in a file of its own:
//   Encode: added tokens cut out ▶ normalizer ▶ pre_tokenizer (words) ▶ model (pieces) ▶ post_processor (special
//   tokens) Decode: pieces ▶ decoder (text)
// Models: BPE, byte-level or with byte fallback, and WordPiece. What each stage implements is said in its header; a
// file that asks for anything else is refused at load. The file's own truncation and padding are ignored. Immutable and
// thread-safe. Encoding takes O(n log n) time in the text's length and keeps no cache.
class Tokenizer {
 public:
  // One decoding in progress, for streaming: the appended texts and Finish() together equal Decode() of all ids. Must
  // not outlive its tokenizer; one thread at a time.
  class Stream {
   public:
    ~Stream();
    Stream(Stream&&);
    Stream& operator=(Stream&&);

    // The text that this id makes final: whole characters of valid UTF-8, possibly none.
    std::string Append(int32_t id);
    // What was still held back. Append must not be called after it.
    std::string Finish();
    // Another decoding in the same state.
    Stream Clone() const;

   private:
    friend class Tokenizer;
    struct State;
    explicit Stream(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
  };

  // NotFound: no such file, naming the path. InvalidArgument: malformed JSON, a missing or ill-typed field, a merge of
  // unknown pieces, a stage or option that is not implemented, naming file and field.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& tokenizer_json_path);

  // From a model folder's tokenizer.json, or the metadata of a GGUF file (gguf_tokenizer.h, and its errors). Where its
  // tokenizer_config.json names a class that puts bos_token or eos_token around texts by itself, these take the place
  // of the post_processor (tokenizer_class.h). Errors as Load; InvalidArgument also for a malformed
  // tokenizer_config.json and for a token that is not in the vocabulary.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadFolder(const std::string& folder);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of `utf8`. Special tokens written in the text are recognized; `add_special_tokens` also puts those around
  // it that the file's post_processor names ([CLS] and [SEP], say). InvalidArgument: not UTF-8, with the offset of the
  // first bad byte. ResourceExhausted: the file's regular expression backtracks without end on this text.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view utf8, bool add_special_tokens) const;

  // What is kept of a text so that texts which begin with it can be encoded without encoding it again. Only what can
  // differ at the seam is, and what follows it. Holds no reference to the text or the tokenizer; immutable.
  struct Seam {
    size_t ids_kept = 0;  // Of the text's ids, those that are the same whatever follows.
    // The rest of the text, from a safe cut on: its beginning normalized, its end as given.
    std::string normalized;
    std::string raw;
    bool starts_input = true;    // The text from the cut on is a segment (pre_tokenizer.h) that starts the input,
    bool continues = false;      // or the middle of one.
    bool is_normalized = false;  // What precedes `raw` is normalized with it: no normalizer puts anything before `raw`.
    std::vector<int32_t> after;  // The special tokens at the end.

    size_t bytes() const { return normalized.size() + raw.size(); }  // Encoded with each text that follows.
  };

  // `ids`: what Encode gave for `text`. The cut is the last one known to be safe, from what each stage looks at:
  //   added tokens    No token begins before it and ends behind it. What the text's end may become, and white space
  //                   that a token with lstrip may take, lies behind it (AddedTokens::SplitOpen).
  //   normalizer      Its form of the whole is that of the two sides (Normalizer::SplitsBefore).
  //   pre_tokenizer   Its words are those of the two sides (OpenText), or
  //   model           the ids of the word that is cut are those of the two sides (TokenModel::NeverJoins).
  //   post_processor  puts its tokens around the ids.
  // Where there is none the seam is the whole text: a normalizer that looks across (Strip, BertNormalizer, Replace of
  // more than a character), a pattern that looks behind, a word that the model might join anywhere. O(n), as one Encode
  // without the model.
  Seam FindSeam(absl::string_view text, bool add_special_tokens, absl::Span<const int32_t> ids) const;

  // The ids of Encode(text + continuation, add_special_tokens) from ids_kept on, in the time that the seam's bytes and
  // the continuation's take. Errors as Encode, with the offset in the continuation.
  absl::StatusOr<std::vector<int32_t>> EncodeAfter(const Seam& seam, absl::string_view continuation) const;

  // Bytes of text that have been given to this tokenizer's stages since it was loaded: what encoding cost, whatever the
  // machine. FindSeam counts as one encoding.
  int64_t bytes_encoded() const;

  // The ids of text that goes on in the middle of another, without special tokens. What a tokenizer puts before a text,
  // such as Metaspace's mark, is left out; white space of its own at the start of `utf8` stays. Errors as Encode.
  absl::StatusOr<std::vector<int32_t>> EncodeContinuing(absl::string_view utf8) const;

  // Valid UTF-8; bytes that form no character show as U+FFFD. Ids that are not in the vocabulary contribute nothing.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;
  Stream StartDecoding(bool skip_special_tokens) const;
  // Decoding of what follows `context`: the texts are those of Decode(context + ids) less Decode(context). So the first
  // id keeps its space unless it starts the text. A character that `context` leaves unfinished is given whole, by the
  // id that completes it. O(context).
  Stream StartDecodingAfter(absl::Span<const int32_t> context, bool skip_special_tokens) const;

  // The bytes this id contributes when it stands inside a sequence, special or not; may be part of a character. Empty
  // for an id that is not in the vocabulary.
  std::string TokenBytes(int32_t id) const;

  // TokenBytes as valid UTF-8: a part of a character shows as U+FFFD.
  std::string TokenText(int32_t id) const;

  // The piece as the file spells it ("Ġthe"). Empty for an id that is not in the vocabulary. Lives as long as this
  // object.
  absl::string_view Piece(int32_t id) const;
  std::optional<int32_t> TokenToId(absl::string_view piece) const;
  // An added token marked special, such as <|endoftext|>.
  bool IsSpecial(int32_t id) const;

  // The largest id + 1, so that a table of this size can be indexed by id. There may be holes.
  int vocabulary_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  static absl::StatusOr<std::unique_ptr<Impl>> ReadImpl(const std::string& tokenizer_json_path);
  struct Segment;
  absl::StatusOr<std::vector<int32_t>> EncodeFrom(Segment start, absl::string_view utf8) const;

  std::unique_ptr<const Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_TOKENIZER_H_
