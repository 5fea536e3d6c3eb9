#ifndef C3PO_INDEX_BASE_SHA256_H_
#define C3PO_INDEX_BASE_SHA256_H_

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// Incremental SHA-256 (FIPS 180-4). Not thread-safe; one digest per object.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(absl::string_view bytes);
  // 32 bytes; or as lowercase hexadecimal, 64 characters. Call one of them, once, last.
  std::string Digest();
  std::string HexDigest();

  static std::string HexOf(absl::string_view bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_SHA256_H_
