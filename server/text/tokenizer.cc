#include "server/text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/added_tokens.h"
#include "server/text/decoder.h"
#include "server/text/json_field.h"
#include "server/text/normalizer.h"
#include "server/text/post_processor.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/token_model.h"
#include "server/text/tokenizer_class.h"
#include "server/text/utf8.h"

namespace c3po {

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

  void FillEntries();
  // `text` is a part between added tokens; starts_input and continues are those of TextSegment.
  absl::Status EncodeNormalized(std::string text, bool starts_input, bool continues, std::vector<int32_t>* ids) const;
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

absl::Status Tokenizer::Impl::EncodeNormalized(std::string text, bool starts_input, bool continues,
                                               std::vector<int32_t>* ids) const {
  C3PO_RETURN_IF_ERROR(normalizer.Normalize(&text, continues));
  for (const AddedTokens::Part& part : added_tokens.Split(text, /*normalized=*/true)) {
    if (part.token != nullptr) {
      ids->push_back(part.token->id);
      continue;
    }
    const bool first = part.begin == 0;
    C3PO_ASSIGN_OR_RETURN(const std::vector<TextSegment> words,
                          pre_tokenizer.Split({text.substr(part.begin, part.end - part.begin), starts_input && first,
                                               continues && first}));
    for (const TextSegment& word : words) model->Tokenize(word.text, ids);
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& tokenizer_json_path) {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Impl> impl, ReadImpl(tokenizer_json_path));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::LoadFolder(const std::string& folder) {
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
  C3PO_ASSIGN_OR_RETURN(const JsonField root, JsonField::ReadFile(tokenizer_json_path));
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
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodeFrom(Start::kNothing, utf8));
  return add_special_tokens ? impl_->post_processor.AddSpecialTokens(std::move(ids)) : std::move(ids);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeContinuing(absl::string_view utf8) const {
  return EncodeFrom(Start::kOtherText, utf8);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeFrom(Start start, absl::string_view utf8) const {
  for (size_t position = 0; position < utf8.size();) {
    const Utf8Step step = ScanUtf8(utf8, position);
    if (step.kind != Utf8Step::Kind::kCharacter) {
      return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", position));
    }
    position += step.length;
  }
  std::vector<int32_t> ids;
  for (const AddedTokens::Part& part : impl_->added_tokens.Split(utf8, /*normalized=*/false)) {
    if (part.token != nullptr) {
      ids.push_back(part.token->id);
      continue;
    }
    C3PO_RETURN_IF_ERROR(impl_->EncodeNormalized(std::string(utf8.substr(part.begin, part.end - part.begin)),
                                                 part.begin == 0 && start == Start::kNothing,
                                                 part.begin == 0 && start == Start::kOtherText, &ids));
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
