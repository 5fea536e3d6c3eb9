#include "server/rpc/doors/tokenizer_archive.h"

#include <array>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kFileBytesMax = int64_t{128} << 20;

constexpr absl::string_view kTokenizer = "tokenizer.json";
constexpr absl::string_view kFiles[] = {"config.json",
                                        "generation_config.json",
                                        kTokenizer,
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "chat_template.jinja",
                                        "chat_template.json"};

// The CRC-32 of ISO 3309, reflected, as ZIP has it.
uint32_t Crc32(absl::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = [] {
    std::array<uint32_t, 256> table = {};
    for (uint32_t i = 0; i < table.size(); ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320U : 0);
      table[i] = value;
    }
    return table;
  }();
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

void Put16(uint16_t value, std::string& out) {
  out.push_back(static_cast<char>(value & 0xFF));
  out.push_back(static_cast<char>(value >> 8));
}

void Put32(uint32_t value, std::string& out) {
  Put16(static_cast<uint16_t>(value & 0xFFFF), out);
  Put16(static_cast<uint16_t>(value >> 16), out);
}

// What the local header and the central directory have in common: from "version needed" to "extra field length".
void PutFileFields(const std::string& name, const std::string& contents, uint32_t crc, std::string& out) {
  constexpr uint16_t kVersion = 10, kNoFlags = 0, kStored = 0, kMidnight = 0, kFirstDay = (1 << 5) | 1, kNoExtra = 0;
  for (const uint16_t field : {kVersion, kNoFlags, kStored, kMidnight, kFirstDay}) Put16(field, out);
  Put32(crc, out);
  Put32(static_cast<uint32_t>(contents.size()), out);  // compressed
  Put32(static_cast<uint32_t>(contents.size()), out);
  Put16(static_cast<uint16_t>(name.size()), out);
  Put16(kNoExtra, out);
}

}  // namespace

absl::StatusOr<std::string> ZipOf(absl::Span<const std::pair<std::string, std::string>> files) {
  constexpr uint32_t kLocalHeader = 0x04034B50, kCentralHeader = 0x02014B50, kEnd = 0x06054B50;
  uint64_t bytes = 0;
  for (const auto& [name, contents] : files) bytes += contents.size() + 2 * name.size() + 128;
  if (bytes > std::numeric_limits<uint32_t>::max() || files.size() > std::numeric_limits<uint16_t>::max())
    return absl::InvalidArgumentError(
        absl::StrCat(bytes, " bytes in ", files.size(), " files are too much for one archive"));
  std::string archive, directory;
  archive.reserve(bytes);
  for (const auto& [name, contents] : files) {
    const auto offset = static_cast<uint32_t>(archive.size());
    const uint32_t crc = Crc32(contents);
    Put32(kLocalHeader, archive);
    PutFileFields(name, contents, crc, archive);
    absl::StrAppend(&archive, name, contents);
    Put32(kCentralHeader, directory);
    Put16(10, directory);  // Made by version 1.0, on MS-DOS.
    PutFileFields(name, contents, crc, directory);
    for (int i = 0; i < 3; ++i) Put16(0, directory);  // Length of the comment, disk, internal attributes.
    Put32(0, directory);                              // External attributes.
    Put32(offset, directory);
    directory.append(name);
  }
  const auto directory_at = static_cast<uint32_t>(archive.size());
  archive.append(directory);
  Put32(kEnd, archive);
  Put32(0, archive);  // This disk and the directory's.
  for (int i = 0; i < 2; ++i) Put16(static_cast<uint16_t>(files.size()), archive);
  Put32(static_cast<uint32_t>(directory.size()), archive);
  Put32(directory_at, archive);
  Put16(0, archive);  // Length of the comment.
  return archive;
}

absl::StatusOr<std::shared_ptr<const TokenizerArchive::Archive>> TokenizerArchive::Get(const std::string& folder) {
  const MutexLock lock(mutex_);
  if (std::shared_ptr<const Archive> made = made_.lock()) return made;
  std::vector<std::pair<std::string, std::string>> files;
  for (const absl::string_view name : kFiles) {
    absl::StatusOr<std::string> contents = ReadWholeFile(absl::StrCat(folder, "/", name), kFileBytesMax);
    if (absl::IsNotFound(contents.status()) && name != kTokenizer) continue;
    C3PO_RETURN_IF_ERROR(contents.status());
    files.emplace_back(name, *std::move(contents));
  }
  auto archive = std::make_shared<Archive>();
  C3PO_ASSIGN_OR_RETURN(archive->bytes, ZipOf(files));
  archive->sha256 = Sha256::HexOf(archive->bytes);
  made_ = archive;
  return std::shared_ptr<const Archive>(std::move(archive));
}

}  // namespace c3po
