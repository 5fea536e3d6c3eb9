#ifndef C3PO_SERVER_TEXT_DECODER_H_
#define C3PO_SERVER_TEXT_DECODER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/json_field.h"

namespace c3po {

// Turns pieces back into text. Implements ByteLevel, Metaspace, WordPiece, and Sequence of these with Replace,
// ByteFallback, Fuse and Strip; null joins pieces with spaces. Each stage is a filter over a stream of pieces that
// holds back what later pieces may change, so decoding piece by piece gives the same text as decoding all at once.
// Immutable and thread-safe; streams are not.
class Decoder {
 public:
  // A stage and its per-stream state; internal to decoder.cc.
  class Filter;
  class Stage;

  // One decoding in progress. Independent of the Decoder's lifetime.
  class Stream {
   public:
    ~Stream();
    Stream(Stream&&);
    Stream& operator=(Stream&&);

    // The text that `piece` makes final: whole characters of valid UTF-8, possibly none.
    std::string Append(absl::string_view piece);
    // The rest. Append must not be called after it.
    std::string Finish();
    // Another decoding in the same state.
    Stream Clone() const;

   private:
    friend class Decoder;
    Stream();
    std::vector<std::unique_ptr<Filter>> filters_;
  };

  // From the field `decoder`; nullopt: missing or null. InvalidArgument: a type that is not implemented, a stage in a
  // place where it is not (Replace, ByteFallback, Metaspace or WordPiece after Fuse or ByteLevel), or a malformed
  // field.
  static absl::StatusOr<Decoder> FromJson(const std::optional<JsonField>& decoder);

  Stream Start() const;

  // The bytes that `piece` contributes when it stands inside a sequence; may be part of a character.
  std::string PieceBytes(absl::string_view piece) const;

 private:
  std::vector<std::shared_ptr<const Stage>> stages_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_DECODER_H_
