#include "server/text/decoder.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/text/byte_level.h"
#include "server/text/metaspace.h"
#include "server/text/pattern_field.h"
#include "server/text/regex.h"
#include "server/text/utf8.h"

namespace c3po {

// A stage's state within one stream. Filters pass pieces on to the next; after Fuse or ByteLevel the pieces that follow
// are fragments of one long piece.
class Decoder::Filter {
 public:
  virtual ~Filter() = default;
  virtual void Push(std::string piece, std::vector<std::string>* out) = 0;
  virtual void Finish(std::vector<std::string>*) {}
  // Another one in the same state.
  virtual std::unique_ptr<Filter> Clone() const = 0;
};

class Decoder::Stage {
 public:
  virtual ~Stage() = default;
  virtual std::unique_ptr<Filter> Start() const = 0;
  // What a piece inside the sequence becomes, alone.
  virtual std::string PieceBytes(std::string piece) const = 0;
};

namespace {

using Pieces = std::vector<std::string>;
using StagePtr = std::shared_ptr<const Decoder::Stage>;

constexpr int kSequenceDepthMax = 8;
constexpr int64_t kStripCountMax = 1 << 20;

// A filter whose output for a piece depends on nothing but whether the piece is the first.
class PieceWiseStage : public Decoder::Stage, public std::enable_shared_from_this<PieceWiseStage> {
 public:
  virtual std::string Convert(std::string piece, bool first) const = 0;

  std::string PieceBytes(std::string piece) const override { return Convert(std::move(piece), /*first=*/false); }

  std::unique_ptr<Decoder::Filter> Start() const override {
    class PieceWise final : public Decoder::Filter {
     public:
      explicit PieceWise(std::shared_ptr<const PieceWiseStage> stage) : stage_(std::move(stage)) {}
      std::unique_ptr<Decoder::Filter> Clone() const override { return std::make_unique<PieceWise>(*this); }
      void Push(std::string piece, Pieces* out) override {
        out->push_back(stage_->Convert(std::move(piece), first_));
        first_ = false;
      }

     private:
      std::shared_ptr<const PieceWiseStage> stage_;
      bool first_ = true;
    };
    return std::make_unique<PieceWise>(shared_from_this());
  }
};

class JoinWithSpaces final : public PieceWiseStage {
 public:
  std::string Convert(std::string piece, bool first) const override { return first ? piece : absl::StrCat(" ", piece); }
};

class Metaspace final : public PieceWiseStage {
 public:
  explicit Metaspace(MetaspaceOptions options) : options_(std::move(options)) {}
  std::string Convert(std::string piece, bool first) const override {
    const bool drop = first && options_.prepend != MetaspaceOptions::Prepend::kNever;
    return absl::StrReplaceAll(piece, {{options_.mark, drop ? "" : " "}});
  }

 private:
  MetaspaceOptions options_;
};

class WordPiece final : public PieceWiseStage {
 public:
  WordPiece(std::string prefix, bool clean_up) : prefix_(std::move(prefix)), clean_up_(clean_up) {}

  std::string Convert(std::string piece, bool first) const override {
    if (!first) piece = absl::StartsWith(piece, prefix_) ? piece.substr(prefix_.size()) : absl::StrCat(" ", piece);
    if (!clean_up_) return piece;
    // One after the other, as BERT's authors did: the order matters.
    const std::pair<const char*, const char*> artifacts[] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (const auto& artifact : artifacts) piece = absl::StrReplaceAll(piece, {artifact});
    return piece;
  }

 private:
  std::string prefix_;
  bool clean_up_;
};

class Replace final : public PieceWiseStage {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string Convert(std::string piece, bool) const override {
    const absl::StatusOr<std::string> replaced = ReplaceAll(pattern_, content_, piece);
    return replaced.ok() ? *replaced : piece;  // A pattern that gives up on a piece leaves it as it is.
  }

 private:
  Regex pattern_;
  std::string content_;
};

// Takes `content` off: at most `start` times from the front and `stop` times from the back of each piece.
class Strip final : public PieceWiseStage {
 public:
  Strip(std::string content, int64_t start, int64_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  std::string Convert(std::string piece, bool) const override {
    absl::string_view rest = piece;
    for (int64_t i = 0; i < start_ && absl::ConsumePrefix(&rest, content_); ++i) continue;
    for (int64_t i = 0; i < stop_ && absl::ConsumeSuffix(&rest, content_); ++i) continue;
    return std::string(rest);
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
};

// The same over the whole text, which comes in fragments: trailing `content` is held until something else follows.
class StripWhole final : public Decoder::Stage {
 public:
  StripWhole(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  std::string PieceBytes(std::string piece) const override { return piece; }

  std::unique_ptr<Decoder::Filter> Start() const override {
    class WholeText final : public Decoder::Filter {
     public:
      WholeText(std::string content, int64_t start, int64_t stop)
          : content_(std::move(content)), start_left_(start), stop_(stop) {}

      std::unique_ptr<Decoder::Filter> Clone() const override { return std::make_unique<WholeText>(*this); }
      void Push(std::string fragment, Pieces* out) override {
        absl::string_view rest = fragment;
        while (start_left_ > 0 && absl::ConsumePrefix(&rest, content_)) --start_left_;
        if (rest.empty()) return;
        start_left_ = 0;
        const std::string text = absl::StrCat(held_, rest);
        absl::string_view safe = text;
        for (int64_t i = 0; i < stop_ && absl::ConsumeSuffix(&safe, content_); ++i) continue;
        held_ = text.substr(safe.size());
        if (!safe.empty()) out->push_back(std::string(safe));
      }

     private:
      const std::string content_;
      int64_t start_left_;
      const int64_t stop_;
      std::string held_;
    };
    return std::make_unique<WholeText>(content_, start_, stop_);
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
};

// "<0x61>" is byte 0x61. A run of such pieces that is valid UTF-8 as a whole becomes its text, another run one U+FFFD
// per piece, as in the reference; hence a run is held until it ends.
class ByteFallback final : public Decoder::Stage {
 public:
  static std::optional<char> ByteOf(absl::string_view piece) {
    if (piece.size() != 6 || !absl::StartsWith(piece, "<0x") || piece[5] != '>') return std::nullopt;
    int byte = 0;
    for (const char c : piece.substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                               : -1;
      if (digit < 0) return std::nullopt;
      byte = byte * 16 + digit;
    }
    return static_cast<char>(byte);
  }

  std::string PieceBytes(std::string piece) const override {
    const std::optional<char> byte = ByteOf(piece);
    return byte.has_value() ? std::string(1, *byte) : piece;
  }

  std::unique_ptr<Decoder::Filter> Start() const override {
    class Run final : public Decoder::Filter {
     public:
      std::unique_ptr<Decoder::Filter> Clone() const override { return std::make_unique<Run>(*this); }
      void Push(std::string piece, Pieces* out) override {
        if (const std::optional<char> byte = ByteOf(piece); byte.has_value()) {
          bytes_.push_back(*byte);
          return;
        }
        Finish(out);
        out->push_back(std::move(piece));
      }

      void Finish(Pieces* out) override {
        if (IsValidUtf8(bytes_)) {
          if (!bytes_.empty()) out->push_back(bytes_);
        } else {
          out->insert(out->end(), bytes_.size(), std::string(kReplacementCharacter));
        }
        bytes_.clear();
      }

     private:
      std::string bytes_;
    };
    return std::make_unique<Run>();
  }
};

// Pieces in the byte-level alphabet become bytes; what is not UTF-8 shows as U+FFFD. Holds back an unfinished
// character.
class ByteLevel final : public Decoder::Stage {
 public:
  std::string PieceBytes(std::string piece) const override { return AlphabetToBytes(piece); }

  std::unique_ptr<Decoder::Filter> Start() const override {
    class Bytes final : public Decoder::Filter {
     public:
      std::unique_ptr<Decoder::Filter> Clone() const override { return std::make_unique<Bytes>(*this); }
      void Push(std::string piece, Pieces* out) override {
        held_.append(AlphabetToBytes(piece));
        std::string text;
        size_t position = 0;
        while (position < held_.size()) {
          const Utf8Step step = ScanUtf8(held_, position);
          if (step.kind == Utf8Step::Kind::kTruncated) break;
          const bool whole = step.kind == Utf8Step::Kind::kCharacter;
          absl::StrAppend(&text,
                          whole ? absl::string_view(held_).substr(position, step.length) : kReplacementCharacter);
          position += step.length;
        }
        held_.erase(0, position);
        if (!text.empty()) out->push_back(std::move(text));
      }

      void Finish(Pieces* out) override {
        if (!held_.empty()) out->push_back(std::string(kReplacementCharacter));
        held_.clear();
      }

     private:
      std::string held_;  // At most 3 bytes between calls.
    };
    return std::make_unique<Bytes>();
  }
};

// Reads one stage, or the stages of a Sequence. `*fused`: what arrives are fragments of one long piece.
absl::Status AppendStages(const JsonField& json, int depth, bool* fused, std::vector<StagePtr>* stages) {
  C3PO_ASSIGN_OR_RETURN(const std::string type, json.StringMember("type"));
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return json.Error("sequences nest too deep");
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "decoders"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField members, json.Member("decoders"));
    return members.ForEachElement(
        [&](size_t, const JsonField& member) { return AppendStages(member, depth + 1, fused, stages); });
  }
  if (type == "Fuse") {  // Marks a boundary; fragments pass as they are.
    *fused = true;
    return json.ExpectOnly({"type"});
  }
  if (type == "Strip") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "content", "start", "stop"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField content_field, json.Member("content"));
    C3PO_ASSIGN_OR_RETURN(const char32_t character, content_field.AsCharacter());
    C3PO_ASSIGN_OR_RETURN(const JsonField start_field, json.Member("start"));
    C3PO_ASSIGN_OR_RETURN(const int64_t start, start_field.AsInteger(0, kStripCountMax));
    C3PO_ASSIGN_OR_RETURN(const JsonField stop_field, json.Member("stop"));
    C3PO_ASSIGN_OR_RETURN(const int64_t stop, stop_field.AsInteger(0, kStripCountMax));
    std::string content;
    AppendCodePoint(character, &content);
    if (*fused) {
      stages->push_back(std::make_shared<StripWhole>(std::move(content), start, stop));
    } else {
      stages->push_back(std::make_shared<Strip>(std::move(content), start, stop));
    }
    return absl::OkStatus();
  }
  if (*fused) return json.Error(absl::StrCat("type \"", type, "\" is not supported after Fuse or ByteLevel"));
  if (type == "ByteLevel") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    stages->push_back(std::make_shared<ByteLevel>());
    *fused = true;
  } else if (type == "ByteFallback") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type"}));
    stages->push_back(std::make_shared<ByteFallback>());
  } else if (type == "Replace") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "pattern", "content"}));
    C3PO_ASSIGN_OR_RETURN(Regex pattern, ReadPattern(json));
    C3PO_ASSIGN_OR_RETURN(std::string content, json.StringMember("content"));
    stages->push_back(std::make_shared<Replace>(std::move(pattern), std::move(content)));
  } else if (type == "Metaspace") {
    C3PO_ASSIGN_OR_RETURN(MetaspaceOptions options, MetaspaceOptions::FromJson(json));
    stages->push_back(std::make_shared<Metaspace>(std::move(options)));
  } else if (type == "WordPiece") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "prefix", "cleanup"}));
    C3PO_ASSIGN_OR_RETURN(std::string prefix, json.StringMember("prefix"));
    C3PO_ASSIGN_OR_RETURN(const bool clean_up, json.BoolMember("cleanup"));
    stages->push_back(std::make_shared<WordPiece>(std::move(prefix), clean_up));
  } else {
    return json.Error(absl::StrCat("type \"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

std::string Concatenate(const Pieces& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text.append(piece);
  return text;
}

}  // namespace

Decoder::Stream::Stream() = default;
Decoder::Stream::~Stream() = default;
Decoder::Stream::Stream(Stream&&) = default;
Decoder::Stream& Decoder::Stream::operator=(Stream&&) = default;

Decoder::Stream Decoder::Stream::Clone() const {
  Stream copy;
  copy.filters_.reserve(filters_.size());
  for (const auto& filter : filters_) copy.filters_.push_back(filter->Clone());
  return copy;
}

std::string Decoder::Stream::Append(absl::string_view piece) {
  Pieces pieces = {std::string(piece)};
  for (const auto& filter : filters_) {
    Pieces passed;
    for (std::string& each : pieces) filter->Push(std::move(each), &passed);
    pieces = std::move(passed);
  }
  return Concatenate(pieces);
}

std::string Decoder::Stream::Finish() {
  Pieces pieces;
  for (const auto& filter : filters_) {
    Pieces passed;
    for (std::string& each : pieces) filter->Push(std::move(each), &passed);
    filter->Finish(&passed);
    pieces = std::move(passed);
  }
  return Concatenate(pieces);
}

absl::StatusOr<Decoder> Decoder::FromJson(const std::optional<JsonField>& json) {
  Decoder decoder;
  bool fused = false;
  if (json.has_value()) {
    C3PO_RETURN_IF_ERROR(AppendStages(*json, 0, &fused, &decoder.stages_));
  } else {
    decoder.stages_.push_back(std::make_shared<JoinWithSpaces>());
  }
  return decoder;
}

Decoder::Stream Decoder::Start() const {
  Stream stream;
  stream.filters_.reserve(stages_.size());
  for (const StagePtr& stage : stages_) stream.filters_.push_back(stage->Start());
  return stream;
}

std::string Decoder::PieceBytes(absl::string_view piece) const {
  std::string bytes(piece);
  for (const StagePtr& stage : stages_) bytes = stage->PieceBytes(std::move(bytes));
  return bytes;
}

}  // namespace c3po
