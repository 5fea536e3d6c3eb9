// Runs a fuzz target without libFuzzer: every seed (a file, or a line of a .jsonl) as it is, then a number of mutations
// of each, the same in every run.
//   NAME_replay MUTATIONS FILE_OR_FOLDER...
// Each mutation is a handful of changes: a bit, a byte, a number, a piece repeated, dropped or taken from another seed.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);  // Of some targets.

namespace {

constexpr uint32_t kSeed = 20251122;
constexpr size_t kInputBytesMax = 1 << 20;
const char* const kTokens[] = {"0",
                               "-1",
                               "18446744073709551616",
                               "9223372036854775807",
                               "2147483648",
                               "1e999",
                               "null",
                               "true",
                               "\"\"",
                               "[]",
                               "{}",
                               "[[[[[[[[",
                               "\\u0000",
                               "\\ud800",
                               "\xff",
                               "\xf0\x9f\x98\x80",
                               "\n",
                               "{%"};

class Mutator {
 public:
  explicit Mutator(const std::vector<std::string>& seeds) : seeds_(seeds), random_(kSeed) {}

  std::string Change(std::string text) {
    for (size_t left = 1 + Below(5); left > 0; --left) ChangeOnce(text);
    if (text.size() > kInputBytesMax) text.resize(kInputBytesMax);
    return text;
  }

 private:
  size_t Below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void ChangeOnce(std::string& text) {
    const size_t at = Below(text.size()), length = Below(std::min<size_t>(text.size() - at, 64) + 1);
    switch (Below(7)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << Below(8)));
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(random_());
        break;
      case 2:
        text.insert(at, kTokens[Below(std::size(kTokens))]);
        break;
      case 3:
        text.replace(at, length, kTokens[Below(std::size(kTokens))]);
        break;
      case 4:
        text.erase(at, length);
        break;
      case 5:
        text.insert(at, text.substr(at, length));
        break;
      default: {
        const std::string& other = seeds_[Below(seeds_.size())];
        text.replace(at, length, other.substr(Below(other.size()), Below(64)));
      }
    }
  }

  const std::vector<std::string>& seeds_;
  std::mt19937 random_;
};

std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void Run(const std::string& input) {
  // A copy of exactly this size, so that AddressSanitizer sees a read past the end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MUTATIONS FILE_OR_FOLDER...\n", argv[0]);
    return 2;
  }
  std::vector<std::filesystem::path> paths;
  for (int i = 2; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      paths.push_back(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> seeds;
  for (const std::filesystem::path& path : paths) {
    const std::string text = ReadAll(path);
    if (path.extension() != ".jsonl") {
      seeds.push_back(text);
      continue;
    }
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) seeds.push_back(line);
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "%s: no seeds\n", argv[0]);
    return 2;
  }
  const int mutations = std::atoi(argv[1]);
  Run("");
  for (const std::string& seed : seeds) Run(seed);
  Mutator mutator(seeds);
  // Should a run crash, its input lies here.
  const char* const crash_path = std::getenv("C3PO_FUZZ_LAST_INPUT");
  for (int i = 0; i < mutations; ++i) {
    const std::string input = mutator.Change(seeds[i % seeds.size()]);
    if (crash_path != nullptr) std::ofstream(crash_path, std::ios::binary) << input;
    Run(input);
  }
  std::printf("%zu seeds, %d mutations\n", seeds.size(), mutations);
  return 0;
}
