#ifndef C3PO_SERVER_WEIGHTS_GGUF_PARTS_H_
#define C3PO_SERVER_WEIGHTS_GGUF_PARTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/weights/gguf_file.h"

namespace c3po {

// Whether a path is that of a GGUF file, by its name: "X.gguf".
bool IsGgufPath(absl::string_view path);
// Such a path without ".gguf" and, of a split model, the part's number: "X".
std::string GgufStem(absl::string_view path);

// The parts of a model, in their order: of "X-00001-of-0000N.gguf" all N files, which lie beside each other, else the
// file alone. Metadata of the model are the first part's. InvalidArgument: another part than the first one is named;
// the parts' split.no, split.count and split.tensors.count are not those of N parts in this order; two parts hold one
// tensor. Else errors as GgufFile::Open, NotFound for a part that is missing.
absl::StatusOr<std::vector<std::unique_ptr<GgufFile>>> OpenGgufParts(const std::string& path);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_GGUF_PARTS_H_
