#include "server/weights/weight_map.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/weights/safetensors_file.h"

namespace c3po {
namespace {

constexpr int64_t kIndexBytesMax = 64 << 20;

// Reads {"weight_map": {tensor name: file name}} as a stream of JSON events, as HeaderReader does, for the same
// reasons; whatever else the top level holds is passed over.
class WeightMapReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool key(string_t& text) override {
    if (depth_ == 1) {
      at_weight_map_ = text == "weight_map";
      if (at_weight_map_ && std::exchange(seen_, true)) return Fail("weight_map appears twice");
    } else if (InWeightMap()) {
      name_ = text;
    }
    return true;
  }
  bool string(string_t& text) override {
    if (!InWeightMap()) return Value();
    if (!absl::EndsWith(text, ".safetensors") || absl::StrContains(text, '/') || absl::StrContains(text, '\0')) {
      return BadEntry();
    }
    if (!weight_map_.emplace(name_, text).second) return Fail(absl::StrCat("weight_map[", Quoted(name_), "] twice"));
    if (weight_map_.size() > kSafetensorsTensorsMax) {
      return Fail(absl::StrCat("weight_map has more than ", kSafetensorsTensorsMax, " tensors"));
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (InWeightMap()) return BadEntry();
    ++depth_;
    return true;
  }
  bool end_object() override { return End(); }
  bool start_array(std::size_t) override {
    if (!Value()) return false;
    ++depth_;
    return true;
  }
  bool end_array() override { return End(); }
  bool number_unsigned(number_unsigned_t) override { return Value(); }
  bool number_integer(number_integer_t) override { return Value(); }
  bool number_float(number_float_t, const string_t&) override { return Value(); }
  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool binary(binary_t&) override { return Value(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not JSON at byte ", position));
  }

  // What is wrong with a document that was read; empty: nothing.
  const std::string& error() {
    if (error_.empty() && !seen_) Fail("weight_map is missing or not an object");
    return error_;
  }
  WeightMap TakeWeightMap() { return std::move(weight_map_); }

 private:
  bool InWeightMap() const { return at_weight_map_ && depth_ == 2; }
  bool End() {
    if (--depth_ == 1) at_weight_map_ = false;
    return true;
  }
  // A value that is not an object: passed over where nothing depends on it.
  bool Value() {
    if (InWeightMap()) return BadEntry();
    return depth_ > (at_weight_map_ ? 1u : 0u) || Fail("weight_map is missing or not an object");
  }
  bool BadEntry() {
    return Fail(absl::StrCat("weight_map[", Quoted(name_), "] is not the name of a .safetensors file in the folder"));
  }
  bool Fail(std::string problem) {
    if (error_.empty()) error_ = std::move(problem);
    return false;
  }

  size_t depth_ = 0;  // 1: in the top object.
  bool at_weight_map_ = false, seen_ = false;
  std::string name_;
  WeightMap weight_map_;
  std::string error_;
};

}  // namespace

absl::StatusOr<WeightMap> ReadWeightMap(const std::string& index_path) {
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(index_path, kIndexBytesMax));
  WeightMapReader reader;
  nlohmann::json::sax_parse(text, &reader);
  if (!reader.error().empty()) return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", reader.error()));
  return reader.TakeWeightMap();
}

}  // namespace c3po
