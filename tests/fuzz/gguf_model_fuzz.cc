// A whole model in one .gguf file: opened, checked against its configuration, hashed, and its tokenizer read.

#include "server/model/config/gguf_model.h"
#include "server/model/config/tensor_plan.h"
#include "server/text/gguf_tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const c3po::MemoryFile memory(input);
  const auto tokenizer = c3po::ReadGgufTokenizer(memory.path());
  C3PO_FUZZ_CHECK(tokenizer.ok() ? !tokenizer->tokenizer_json.empty() : !tokenizer.status().message().empty());
  const auto checkpoint = c3po::OpenGgufModel(memory.path());
  if (!checkpoint.ok()) {
    C3PO_FUZZ_CHECK(!checkpoint.status().message().empty());
    return;
  }
  C3PO_FUZZ_CHECK((*checkpoint)->Digest().size() == 64);
  const auto config = c3po::ReadConfig(**checkpoint);
  if (!config.ok() || !c3po::CheckTensors(**checkpoint, *config).ok()) return;
  int64_t elements = 0;
  for (const std::string& name : (*checkpoint)->names()) elements += (*checkpoint)->Find(name)->elements();
  C3PO_FUZZ_CHECK(c3po::CountParameters(*config).total <= elements);
}
