#ifndef C3PO_TESTS_SERVER_WEIGHTS_GGUF_TEXT_H_
#define C3PO_TESTS_SERVER_WEIGHTS_GGUF_TEXT_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/weights/gguf_file.h"

namespace c3po {

// Numbers and texts as a GGUF file has them.
template <typename Number>
std::string GgufBytes(Number number) {
  std::string bytes(sizeof number, '\0');
  std::memcpy(bytes.data(), &number, sizeof number);
  return bytes;
}
inline std::string GgufText(absl::string_view text) { return GgufBytes(uint64_t{text.size()}) + std::string(text); }

// The bytes of a GGUF file, entry by entry. What tests break is public.
struct GgufContent {
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dimensions;  // From the innermost to the outermost.
    uint32_t type;
    uint64_t offset;
  };
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> entries;  // Whole: key, type, value.
  std::vector<Tensor> tensors;
  uint64_t alignment = 32;
  std::string data;

  void Add(absl::string_view key, GgufType type, absl::string_view value) {
    entries.push_back(GgufText(key) + GgufBytes(static_cast<uint32_t>(type)) + std::string(value));
  }
  void AddText(absl::string_view key, absl::string_view text) { Add(key, GgufType::kString, GgufText(text)); }
  void AddNumber(absl::string_view key, uint32_t number) { Add(key, GgufType::kUint32, GgufBytes(number)); }

  // Where the data begins, less their padding.
  std::string Header() const {
    std::string text =
        magic + GgufBytes(version) + GgufBytes(uint64_t{tensors.size()}) + GgufBytes(uint64_t{entries.size()});
    for (const std::string& entry : entries) text += entry;
    for (const Tensor& tensor : tensors) {
      text += GgufText(tensor.name) + GgufBytes(static_cast<uint32_t>(tensor.dimensions.size()));
      for (const uint64_t dimension : tensor.dimensions) text += GgufBytes(dimension);
      text += GgufBytes(tensor.type) + GgufBytes(tensor.offset);
    }
    return text;
  }
  std::string Bytes() const {
    std::string text = Header();
    text.resize((text.size() + alignment - 1) / alignment * alignment);
    return text + data;
  }
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_WEIGHTS_GGUF_TEXT_H_
