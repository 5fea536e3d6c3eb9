#ifndef C3PO_TESTS_BENCH_REEMBEDDING_H_
#define C3PO_TESTS_BENCH_REEMBEDDING_H_

#include <string>
#include <vector>

namespace c3po {

struct ReembeddingOptions {
  std::string embedder;            // Folder of a sentence encoder and its tokenizer.json.
  std::vector<std::string> texts;  // JSONL files; the "prompt" of each line is a text.
  int references = 500;
  int queries = 5;
  int k = 12;
};

// Finding the neighbors of a query with embeddings that are kept, as the server does, against the public
// implementation's way, which embeds all references again for every query and compares it with each. Both ways use this
// repository's sentence encoder on one thread, as the server does, and the same texts: `references` of them drawn from
// the files by a fixed seed, and `queries` others. Prints times, and their ratio with and without the query's own
// embedding, which both ways need. Ends the program when the ways find other neighbors.
void CompareWithReembedding(const ReembeddingOptions& options);

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_REEMBEDDING_H_
