#include "tests/bench/reembedding.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "index/search/reference_catalog.h"
#include "server/compute/device.h"
#include "server/embed/sentence_encoder.h"
#include "server/text/tokenizer.h"
#include "server/types/device_name.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

using Vectors = std::vector<std::vector<float>>;

constexpr int kRepetitions = 51;  // Of a search, which is too short to be timed once.

std::vector<std::string> ReadPrompts(const std::vector<std::string>& paths) {
  std::vector<std::string> prompts;
  for (const std::string& path : paths) {
    std::ifstream file(path);
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
      const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!record.is_object() || !record.contains("prompt") || !record["prompt"].is_string()) {
        OkOrExit(absl::InvalidArgumentError(
            absl::StrCat("--texts: ", path, ":", number, ": not a JSON object with a text \"prompt\"")));
      }
      prompts.push_back(record["prompt"].get<std::string>());
    }
  }
  return prompts;
}

// The k largest cosines of the query with the rows, descending: what the public implementation computes.
std::vector<double> LargestCosines(const std::vector<float>& query, const Vectors& rows, int k) {
  std::vector<double> cosines;
  for (const std::vector<float>& row : rows) {
    cosines.push_back(std::inner_product(row.begin(), row.end(), query.begin(), 0.0f));
  }
  const auto end = cosines.begin() + std::min<std::ptrdiff_t>(k, std::ssize(cosines));
  std::partial_sort(cosines.begin(), end, cosines.end(), std::greater<>());
  cosines.erase(end, cosines.end());
  return cosines;
}

// Vectors are of unit length: cos = 1 - d^2 / 2.
void ExpectSameNeighbors(const std::vector<LabeledDistance>& found, const std::vector<double>& cosines) {
  bool same = found.size() == cosines.size();
  for (size_t i = 0; same && i < found.size(); ++i) {
    same = std::abs(1 - found[i].distance * found[i].distance / 2 - cosines[i]) < 1e-4;
  }
  if (!same) OkOrExit(absl::InternalError("the index and the public implementation's way find other neighbors"));
}

struct Times {
  std::vector<double> embed_query, search, embed_references, scan, retrieval_ratio, request_ratio;
};

// The index that a ReferenceCatalog takes for so many.
std::unique_ptr<NeighborIndex> IndexOf(const Vectors& rows, int dimension) {
  const CatalogOptions catalog;
  std::unique_ptr<NeighborIndex> index = std::make_unique<ExactIndex>(dimension);
  if (std::ssize(rows) > catalog.exact_references_max) {
    index = ValueOrExit(HnswIndex::Create(dimension, catalog.hnsw));
  }
  for (size_t i = 0; i < rows.size(); ++i) OkOrExit(index->Add(static_cast<int64_t>(i), rows[i]));
  return index;
}

Times Measure(SentenceEncoder& encoder, const std::vector<std::string>& references,
              const std::vector<std::string>& queries, int k) {
  const auto index = IndexOf(ValueOrExit(encoder.Embed(references)), encoder.dimension());
  Times times;
  for (const std::string& text : queries) {
    std::vector<float> query;
    std::vector<double> embed, search;
    for (int i = 0; i < 5; ++i) {
      embed.push_back(Seconds([&] { query = ValueOrExit(encoder.Embed({text})).front(); }));
    }
    std::vector<LabeledDistance> found;
    for (int i = 0; i < kRepetitions; ++i) {
      search.push_back(Seconds([&] { found = ValueOrExit(index->Search(query, k)); }));
    }
    Vectors again;
    std::vector<double> cosines;
    times.embed_references.push_back(Seconds([&] { again = ValueOrExit(encoder.Embed(references)); }));
    times.scan.push_back(Seconds([&] { cosines = LargestCosines(query, again, k); }));
    ExpectSameNeighbors(found, cosines);
    times.embed_query.push_back(Median(embed));
    times.search.push_back(Median(search));
    const double public_way = times.embed_references.back() + times.scan.back();
    times.retrieval_ratio.push_back(public_way / times.search.back());
    times.request_ratio.push_back((times.embed_query.back() + public_way) /
                                  (times.embed_query.back() + times.search.back()));
  }
  return times;
}

}  // namespace

void CompareWithReembedding(const ReembeddingOptions& options) {
  const auto tokenizer =
      ValueOrExit(Tokenizer::Load((std::filesystem::path(options.embedder) / "tokenizer.json").string()));
  const auto encode = [&](absl::string_view text) { return tokenizer->Encode(text, /*add_special_tokens=*/true); };
  const auto encoder =
      ValueOrExit(SentenceEncoder::Load(options.embedder, ValueOrExit(OpenQueue(std::string(kCpuDevice))), encode));
  std::vector<std::string> references = ReadPrompts(options.texts);
  const size_t wanted = static_cast<size_t>(options.references) + options.queries;
  if (references.size() < wanted) {
    OkOrExit(absl::InvalidArgumentError(absl::StrFormat(
        "--texts: %d lines, but %d references and %d queries are wanted (--text-references, --text-queries)",
        references.size(), options.references, options.queries)));
  }
  std::shuffle(references.begin(), references.end(), std::mt19937(1));
  const std::vector<std::string> queries(references.begin() + options.references, references.begin() + wanted);
  references.resize(options.references);
  double tokens = 0;
  for (const std::string& text : references) {
    tokens += std::min<double>(encoder->max_tokens(), static_cast<double>(ValueOrExit(encode(text)).size()));
  }

  const Times times = Measure(*encoder, references, queries, options.k);
  const auto milliseconds = [](double seconds) { return absl::StrFormat("%.4g", seconds * 1e3); };
  MarkdownTable table(
      absl::StrFormat("%d references of %.0f tokens on average, %d queries, k = %d, encoder %s on one thread; medians:",
                      options.references, tokens / options.references, options.queries, options.k, encoder->name()),
      {"", "kept embeddings, ms", "references embedded again, ms"});
  table.Row({"embedding the query", milliseconds(Median(times.embed_query)), milliseconds(Median(times.embed_query))});
  table.Row({"embedding the references", "0", milliseconds(Median(times.embed_references))});
  table.Row({"search", milliseconds(Median(times.search)), milliseconds(Median(times.scan))});
  std::printf(
      "\nRetrieval alone, the query's embedding known: %.0fx. With the query's embedding, which both ways "
      "need: %.0fx.\n",
      Median(times.retrieval_ratio), Median(times.request_ratio));
}

}  // namespace c3po
