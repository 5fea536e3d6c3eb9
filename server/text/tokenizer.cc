#include "server/text/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/added_tokens.h"
#include "server/text/decoder.h"
#include "server/text/gguf_tokenizer.h"
#include "server/text/json_field.h"
#include "server/text/normalizer.h"
#include "server/text/open_text.h"
#include "server/text/post_processor.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/token_model.h"
#include "server/text/tokenizer_class.h"
#include "server/text/utf8.h"
#include "server/weights/gguf_parts.h"

namespace c3po {

namespace {

absl::Status CheckUtf8(absl::string_view text) {
  for (size_t position = 0; position < text.size();) {
    const Utf8Step step = ScanUtf8(text, position);
    if (step.kind != Utf8Step::Kind::kCharacter) {
      return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", position));
    }
    position += step.length;
  }
  return absl::OkStatus();
}

// Of a tokenizer.json, or what stands for it in a GGUF file.
absl::StatusOr<JsonField> ReadRoot(const std::string& path) {
  if (!IsGgufPath(path)) return JsonField::ReadFile(path);
  C3PO_ASSIGN_OR_RETURN(const GgufTokenizer described, ReadGgufTokenizer(path));
  return JsonField::Parse(described.tokenizer_json, path);
}

}  // namespace

// Where a text to encode begins: `normalized` precedes it, and belongs to the segment that starts there. starts_input
// and continues are TextSegment's, is_normalized Seam's.
struct Tokenizer::Segment {
  std::string normalized;
  bool starts_input;
  bool continues;
  bool is_normalized = false;
};

struct Tokenizer::Impl {
  struct Entry {
    std::string piece;
    std::string decoded_piece;  // What the decoder is given: an added token's pattern, else the piece.
    bool is_special = false;
  };

  Normalizer normalizer;
  AddedTokens added_tokens;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const TokenModel> model;
  PostProcessor post_processor;
  Decoder decoder;
  std::vector<std::optional<Entry>> entries;  // By id.
  absl::flat_hash_map<std::string, int32_t> added_ids;

  mutable std::atomic<int64_t> bytes_encoded = 0;

  void FillEntries();
  // `text` is a part between added tokens, normalized.
  absl::Status EncodeNormalized(Segment start, std::vector<int32_t>* ids) const;
  // A seam with all but ids_kept and after; nullopt: it is the whole text.
  std::optional<Seam> CutText(absl::string_view text) const;
  std::optional<Seam> CutNormalized(std::string normalized, bool starts_input) const;
  size_t LastNeverJoined(const OpenText& open) const;
  std::optional<int32_t> IdOf(absl::string_view piece) const {
    const auto added = added_ids.find(piece);
    return added != added_ids.end() ? added->second : model->vocabulary().Find(piece);
  }
  const Entry* Find(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(entries.size()) && entries[id].has_value() ? &*entries[id] : nullptr;
  }
};

struct Tokenizer::Stream::State {
  const Tokenizer::Impl* tokenizer;
  Decoder::Stream decoding;
  bool skip_special_tokens;
  std::string shown;  // Of the context's text, what the decoding has not given out yet: it is not to be given again.

  // `text` without what has been shown. Where the two part, an unfinished character has become another.
  std::string Unseen(std::string text) {
    const auto [differs, shown_differs] = std::mismatch(text.begin(), text.end(), shown.begin(), shown.end());
    size_t length = static_cast<size_t>(differs - text.begin());
    const bool parts = differs != text.end() && shown_differs != shown.end();
    while (parts && length > 0 && (static_cast<uint8_t>(text[length]) & 0xC0) == 0x80) --length;
    shown.erase(0, parts ? shown.size() : length);
    return text.substr(length);
  }
};

void Tokenizer::Impl::FillEntries() {
  int32_t size = model->vocabulary().size();
  for (const AddedToken& token : added_tokens.tokens()) size = std::max(size, token.id + 1);
  entries.resize(size);
  for (int32_t id = 0; id < size; ++id) {
    const std::optional<absl::string_view> piece = model->vocabulary().Piece(id);
    if (piece.has_value()) entries[id] = Entry{std::string(*piece), std::string(*piece)};
  }
  absl::flat_hash_set<std::string> special;
  for (const AddedToken& token : added_tokens.tokens()) {
    entries[token.id] = Entry{token.content, token.pattern};
    added_ids[token.content] = token.id;
    if (token.special) special.insert(token.content);
  }
  for (std::optional<Entry>& entry : entries) {
    if (entry.has_value()) entry->is_special = special.contains(entry->decoded_piece);
  }
}

absl::Status Tokenizer::Impl::EncodeNormalized(Segment start, std::vector<int32_t>* ids) const {
  const absl::string_view text = start.normalized;
  for (const AddedTokens::Part& part : added_tokens.Split(text, /*normalized=*/true)) {
    if (part.token != nullptr) {
      ids->push_back(part.token->id);
      continue;
    }
    const bool first = part.begin == 0;
    C3PO_ASSIGN_OR_RETURN(const std::vector<TextSegment> words,
                          pre_tokenizer.Split({std::string(text.substr(part.begin, part.end - part.begin)),
                                               start.starts_input && first, start.continues && first}));
    for (const TextSegment& word : words) model->Tokenize(word.text, ids);
  }
  return absl::OkStatus();
}

std::optional<Tokenizer::Seam> Tokenizer::Impl::CutText(absl::string_view text) const {
  const AddedTokens::OpenPart part = added_tokens.SplitOpen(text, /*normalized=*/false);
  // The part that is normalized now, and from `raw` on with what follows.
  const size_t raw_min = std::max(part.begin + 1, part.restarts_from);
  for (size_t raw = part.end; raw-- > raw_min;) {
    if ((static_cast<uint8_t>(text[raw]) & 0xC0) == 0x80) continue;
    size_t position = raw;
    if (!normalizer.SplitsBefore(NextCodePoint(text, &position))) continue;
    std::string normalized(text.substr(part.begin, raw - part.begin));
    if (!normalizer.Normalize(&normalized).ok()) break;
    std::optional<Seam> seam = CutNormalized(std::move(normalized), part.begin == 0);
    if (seam.has_value()) seam->raw = std::string(text.substr(raw));
    if (seam.has_value()) return seam;
    break;
  }
  if (part.begin == 0 || !part.restarts_at_begin) return std::nullopt;
  Seam seam;  // From the last added token on.
  seam.raw = std::string(text.substr(part.begin));
  seam.starts_input = false;
  return seam;
}

std::optional<Tokenizer::Seam> Tokenizer::Impl::CutNormalized(std::string normalized, bool starts_input) const {
  const AddedTokens::OpenPart part = added_tokens.SplitOpen(normalized, /*normalized=*/true);
  OpenText open(normalized.substr(part.begin, part.end - part.begin), starts_input && part.begin == 0,
                /*continues=*/false);
  std::fill_n(open.places.begin(), part.restarts_from - part.begin, OpenText::kNowhere);
  if (!pre_tokenizer.Narrow(&open).ok()) return std::nullopt;
  if (const size_t place = LastNeverJoined(open); place != OpenText::kNowhere) open.cut = OpenText::Cut{place, false};
  Seam seam;
  seam.starts_input = false;
  seam.is_normalized = true;
  if (open.cut.has_value()) {
    seam.normalized = normalized.substr(part.begin + open.cut->place);
    seam.continues = !open.cut->is_start;
  } else {
    if (part.begin == 0 || !part.restarts_at_begin) return std::nullopt;
    seam.normalized = normalized.substr(part.begin);
  }
  return seam;
}

// The last place within the last word where the model's ids are those of the two sides.
size_t Tokenizer::Impl::LastNeverJoined(const OpenText& open) const {
  char32_t right = 0;
  size_t right_place = OpenText::kNowhere;
  for (size_t i = open.text.size(); i-- > 0;) {
    if ((static_cast<uint8_t>(open.text[i]) & 0xC0) == 0x80) continue;
    size_t position = i;
    const char32_t left = NextCodePoint(open.text, &position);
    if (right_place != OpenText::kNowhere && model->NeverJoins(left, right)) return right_place;
    right = left;
    right_place = open.places[i];
  }
  return OpenText::kNowhere;
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& tokenizer_json_path) {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, ReadImpl(tokenizer_json_path));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::LoadFolder(const std::string& folder) {
  if (IsGgufPath(folder)) {
    C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, ReadImpl(folder));
    return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
  }
  const std::filesystem::path path(folder);
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, ReadImpl((path / "tokenizer.json").string()));
  C3PO_ASSIGN_OR_RETURN(const std::optional<SurroundingTokens> tokens, ReadSurroundingTokens(folder));
  if (tokens.has_value()) {
    const auto ids_of = [&](const std::optional<std::string>& piece) -> absl::StatusOr<std::vector<int32_t>> {
      if (!piece.has_value()) return std::vector<int32_t>();
      const std::optional<int32_t> id = impl->IdOf(*piece);
      if (id.has_value()) return std::vector<int32_t>{*id};
      return absl::InvalidArgumentError(absl::StrCat((path / "tokenizer_config.json").string(), ": the token \"",
                                                     *piece, "\" to put around texts is not in the vocabulary"));
    };
    C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> before, ids_of(tokens->before));
    C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> after, ids_of(tokens->after));
    impl->post_processor = PostProcessor::Around(before, after);
  }
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Tokenizer::Impl>> Tokenizer::ReadImpl(const std::string& tokenizer_json_path) {
  C3PO_ASSIGN_OR_RETURN(const JsonField root, ReadRoot(tokenizer_json_path));
  if (!root.is_object()) return root.Error("is no JSON object");
  if (const auto version = root.Find("version"); version.has_value()) {
    C3PO_ASSIGN_OR_RETURN(const std::string number, version->AsString());
    if (number != "1.0") return version->Error(absl::StrCat("\"", number, "\" is not supported (1.0 is)"));
  }
  C3PO_RETURN_IF_ERROR(root.ExpectOnly({"version", "truncation", "padding", "added_tokens", "normalizer",
                                        "pre_tokenizer", "post_processor", "decoder", "model"}));
  auto impl = std::make_unique<Impl>();
  C3PO_ASSIGN_OR_RETURN(const JsonField model, root.Member("model"));
  C3PO_ASSIGN_OR_RETURN(impl->model, TokenModel::FromJson(model));
  C3PO_ASSIGN_OR_RETURN(impl->normalizer, Normalizer::FromJson(root.Find("normalizer")));
  C3PO_ASSIGN_OR_RETURN(impl->pre_tokenizer, PreTokenizer::FromJson(root.Find("pre_tokenizer")));
  C3PO_ASSIGN_OR_RETURN(impl->post_processor, PostProcessor::FromJson(root.Find("post_processor")));
  C3PO_ASSIGN_OR_RETURN(impl->decoder, Decoder::FromJson(root.Find("decoder")));
  C3PO_ASSIGN_OR_RETURN(impl->added_tokens,
                        AddedTokens::FromJson(root.Find("added_tokens"), impl->model->vocabulary(), impl->normalizer));
  impl->FillEntries();
  for (const int32_t id : impl->post_processor.AddSpecialTokens({})) {
    if (impl->Find(id) == nullptr) return root.Error(absl::StrCat("post_processor: id ", id, " has no piece"));
  }
  return impl;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view utf8, bool add_special_tokens) const {
  C3PO_RETURN_IF_ERROR(CheckUtf8(utf8));
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodeFrom({"", /*starts_input=*/true, /*continues=*/false}, utf8));
  return add_special_tokens ? impl_->post_processor.AddSpecialTokens(std::move(ids)) : std::move(ids);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeContinuing(absl::string_view utf8) const {
  C3PO_RETURN_IF_ERROR(CheckUtf8(utf8));
  return EncodeFrom({"", /*starts_input=*/false, /*continues=*/true}, utf8);
}

Tokenizer::Seam Tokenizer::FindSeam(absl::string_view text, bool add_special_tokens,
                                    absl::Span<const int32_t> ids) const {
  PostProcessor::Surroundings around;
  if (add_special_tokens) around = impl_->post_processor.AroundSequence();
  impl_->bytes_encoded += static_cast<int64_t>(text.size());
  if (std::optional<Seam> seam = impl_->CutText(text); seam.has_value()) {
    seam->after = around.after;
    const auto rest = EncodeAfter(*seam, "");
    // What a safe cut means for no continuation. Were it not so, the slow way would still be right.
    if (rest.ok() && rest->size() + around.before.size() <= ids.size() &&
        std::equal(rest->begin(), rest->end(), ids.end() - static_cast<ptrdiff_t>(rest->size()))) {
      seam->ids_kept = ids.size() - rest->size();
      return *std::move(seam);
    }
  }
  Seam whole;
  whole.ids_kept = around.before.size();
  whole.raw = std::string(text);
  whole.after = std::move(around.after);
  return whole;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeAfter(const Seam& seam, absl::string_view continuation) const {
  C3PO_RETURN_IF_ERROR(CheckUtf8(continuation));
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                        EncodeFrom({seam.normalized, seam.starts_input, seam.continues, seam.is_normalized},
                                   absl::StrCat(seam.raw, continuation)));
  ids.insert(ids.end(), seam.after.begin(), seam.after.end());
  return ids;
}

int64_t Tokenizer::bytes_encoded() const { return impl_->bytes_encoded; }

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeFrom(Segment start, absl::string_view utf8) const {
  impl_->bytes_encoded += static_cast<int64_t>(start.normalized.size() + utf8.size());
  std::vector<int32_t> ids;
  std::vector<AddedTokens::Part> parts = impl_->added_tokens.Split(utf8, /*normalized=*/false);
  // What precedes has a part of its own if an added token, or nothing, follows.
  if (!start.normalized.empty() && (parts.empty() || parts.front().token != nullptr))
    parts.insert(parts.begin(), {0, 0, nullptr});
  for (const AddedTokens::Part& part : parts) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
      continue;
    }
    Segment segment = {std::string(utf8.substr(part.begin, part.end - part.begin)), false, false};
    const bool first = part.begin == 0;
    C3PO_RETURN_IF_ERROR(
        impl_->normalizer.Normalize(&segment.normalized, first && (start.is_normalized || start.continues)));
    if (first) segment = {start.normalized + segment.normalized, start.starts_input, start.continues};
    C3PO_RETURN_IF_ERROR(impl_->EncodeNormalized(std::move(segment), &ids));
  }
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  Stream stream = StartDecoding(skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text.append(stream.Append(id));
  text.append(stream.Finish());
  return text;
}

Tokenizer::Stream Tokenizer::StartDecoding(bool skip_special_tokens) const {
  return Stream(
      std::unique_ptr<Stream::State>(new Stream::State{impl_.get(), impl_->decoder.Start(), skip_special_tokens, ""}));
}

Tokenizer::Stream Tokenizer::StartDecodingAfter(absl::Span<const int32_t> context, bool skip_special_tokens) const {
  Stream stream = StartDecoding(skip_special_tokens);
  for (const int32_t id : context) stream.Append(id);
  stream.state_->shown = stream.Clone().Finish();
  return stream;
}

std::string Tokenizer::TokenText(int32_t id) const {
  const std::string bytes = TokenBytes(id);
  std::string text;
  for (size_t position = 0; position < bytes.size();) {
    const Utf8Step step = ScanUtf8(bytes, position);
    const bool whole = step.kind == Utf8Step::Kind::kCharacter;
    absl::StrAppend(&text, whole ? absl::string_view(bytes).substr(position, step.length) : kReplacementCharacter);
    position += step.length;
  }
  return text;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  const Impl::Entry* entry = impl_->Find(id);
  return entry == nullptr ? "" : impl_->decoder.PieceBytes(entry->decoded_piece);
}

absl::string_view Tokenizer::Piece(int32_t id) const {
  const Impl::Entry* entry = impl_->Find(id);
  return entry == nullptr ? "" : absl::string_view(entry->piece);
}

std::optional<int32_t> Tokenizer::TokenToId(absl::string_view piece) const { return impl_->IdOf(piece); }

bool Tokenizer::IsSpecial(int32_t id) const {
  const Impl::Entry* entry = impl_->Find(id);
  return entry != nullptr && entry->is_special;
}

int Tokenizer::vocabulary_size() const { return static_cast<int>(impl_->entries.size()); }

Tokenizer::Stream::Stream(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Stream::~Stream() = default;
Tokenizer::Stream::Stream(Stream&&) = default;
Tokenizer::Stream& Tokenizer::Stream::operator=(Stream&&) = default;

std::string Tokenizer::Stream::Append(int32_t id) {
  const Impl::Entry* entry = state_->tokenizer->Find(id);
  if (entry == nullptr || (state_->skip_special_tokens && entry->is_special)) return "";
  return state_->Unseen(state_->decoding.Append(entry->decoded_piece));
}

std::string Tokenizer::Stream::Finish() { return state_->Unseen(state_->decoding.Finish()); }

Tokenizer::Stream Tokenizer::Stream::Clone() const {
  return Stream(std::unique_ptr<State>(
      new State{state_->tokenizer, state_->decoding.Clone(), state_->skip_special_tokens, state_->shown}));
}

}  // namespace c3po
