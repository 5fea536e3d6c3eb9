// One .gguf file: it is refused with a message that names it, or every view and value lies inside it.

#include <vector>

#include "server/weights/gguf_file.h"
#include "server/weights/stored_elements.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const c3po::MemoryFile memory(input);
  const auto file = c3po::GgufFile::Open(memory.path());
  if (!file.ok()) {
    C3PO_FUZZ_CHECK(!file.status().message().empty());
    return;
  }
  for (const auto& [name, view] : (*file)->tensors()) {
    int64_t elements = 1;
    for (const int64_t dimension : view.shape) elements *= dimension;
    C3PO_FUZZ_CHECK(elements == view.elements());
    std::vector<float> values(static_cast<size_t>(elements));
    c3po::ToFloat32(view.dtype, view.bytes.data(), elements, values.data());
  }
  size_t bytes = 0;
  for (const auto& [key, value] : (*file)->metadata()) {
    if (const auto texts = value.Texts()) {
      C3PO_FUZZ_CHECK(texts->size() == value.count);
      for (const absl::string_view text : *texts) bytes += text.size();
    }
    if (const auto text = value.Text()) bytes += text->size();
    if (const auto numbers = value.Integers()) C3PO_FUZZ_CHECK(numbers->size() == value.count);
    if (const auto numbers = value.Floats()) C3PO_FUZZ_CHECK(numbers->size() == value.count);
    value.Integer();
    value.Float();
    value.Bool();
  }
  C3PO_FUZZ_CHECK(bytes <= input.size());
}
