#ifndef C3PO_SERVER_MODEL_CONFIG_CONFIG_FIELDS_H_
#define C3PO_SERVER_MODEL_CONFIG_CONFIG_FIELDS_H_

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Typed reads of one object of a config.json; the first error sticks. A field that is null is not there. Remembers
// which fields were asked for, so that what nobody asked for can be refused.
class ConfigFields {
 public:
  // InvalidArgument: not a JSON object, where NaN and Infinity, as Python writes them, are read as texts: a field that
  // holds a number does not take them. `path` names the file in errors.
  static absl::StatusOr<ConfigFields> Parse(absl::string_view text, const std::string& path);
  // The object that a field holds; its errors say "<field>.<name>". An empty one, and an error here, if it is none.
  ConfigFields Object(const std::string& name);
  ~ConfigFields();
  ConfigFields(ConfigFields&&);

  bool Has(const std::string& name);
  // There, and null: some classes read that otherwise than a missing field. It is not asked for by this.
  bool IsNull(const std::string& name) const;
  // Whether both fields are there, and not the same JSON.
  bool Differ(const std::string& name, const std::string& other);

  int Dimension(const std::string& name);  // in [1, 2^20]
  int DimensionOr(const std::string& name, int fallback) { return Has(name) ? Dimension(name) : fallback; }
  int CountOr(const std::string& name, int fallback);  // in [0, 2^20]
  double PositiveOr(const std::string& name, double fallback);
  bool FlagOr(const std::string& name, bool fallback);
  std::string TextOr(const std::string& name, std::string fallback);
  std::vector<int> Counts(const std::string& name);         // an integer or a list of them, >= 0; empty when missing
  std::vector<int> CountList(const std::string& name);      // a list of integers, likewise
  std::vector<std::string> Texts(const std::string& name);  // a list of strings; empty when missing

  // InvalidArgument unless an integer is missing, or what another field says in its place.
  void RequireSame(const std::string& name, int value, absl::string_view other);
  void Fail(absl::string_view name, absl::string_view what);    // InvalidArgument: "<path>: <name> <what>"
  void Refuse(absl::string_view name, absl::string_view what);  // Unimplemented: "... <what> is not supported"
  // Refuses `name` unless it is missing or one of these values, which are JSON texts.
  void Require(const std::string& name, const std::vector<std::string>& neutral);
  // The names of the fields, other than null, that no read has asked for.
  std::vector<std::string> NotAsked() const;

  const std::string& path() const { return path_; }
  const absl::Status& status() const { return status_; }
  void Adopt(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

 private:
  struct Document;
  ConfigFields(std::unique_ptr<Document> document, std::string path, std::string prefix);

  std::unique_ptr<Document> document_;
  std::string path_, prefix_;
  std::set<std::string> asked_;
  absl::Status status_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_CONFIG_FIELDS_H_
