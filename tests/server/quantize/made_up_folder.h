#ifndef C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_
#define C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_

#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/quantize/quantize_folder.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {

// A golden family's configuration with other sizes, and random weights in bfloat16.
struct MadeUpModel {
  std::string golden;
  std::string changes;    // A JSON object of fields in place of config.json's.
  bool together = false;  // Experts in one tensor each, as transformers 5.x stores them.

  void Write(const TestFolder& folder) const;
};
inline void PrintTo(const MadeUpModel& model, std::ostream* out) { *out << model.golden; }

// A folder and what was made of it.
class QuantizedFolder {
 public:
  void Quantize(WeightFormat format, const std::function<void(QuantizeOptions&)>& change = nullptr) {
    QuantizeOptions options;
    options.from = from_;
    options.to = to();
    options.weights = format;
    if (change) change(options);
    result_ = QuantizeFolder(options);
  }
  // Of files that are not made up.
  void From(const std::string& folder) { from_ = folder; }

  const TestFolder& folder() const { return folder_; }
  const std::string& from() const { return from_; }
  std::string to() const { return from_root_ + "/out"; }
  const absl::StatusOr<QuantizeResult>& result() const { return result_; }

 private:
  TestFolder folder_;
  std::string from_root_ = folder_.path() + ".written", from_ = folder_.path();
  absl::StatusOr<QuantizeResult> result_ = absl::UnknownError("not asked");

  struct Cleanup {
    explicit Cleanup(std::string path) : path(std::move(path)) { std::filesystem::create_directories(this->path); }
    ~Cleanup() { std::filesystem::remove_all(path); }
    std::string path;
  } cleanup_{from_root_};
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_
