#include "server/rpc/doors/http/c3po_choice.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/optimization_choice.h"

namespace c3po {
namespace {

using google::protobuf::FieldDescriptor;

constexpr char kObject[] = "c3po";

const FieldDescriptor* FieldNamed(const std::string& name) {
  const auto* const type = v1::OptimizationOptions::descriptor();
  if (const FieldDescriptor* field = type->FindFieldByName(name)) return field;
  for (int i = 0; i < type->field_count(); ++i) {
    if (type->field(i)->json_name() == name) return type->field(i);
  }
  return nullptr;
}

// Whether another member of a oneof was set before: protobuf would take the last one in silence.
bool HasOther(const FieldDescriptor& field, const v1::OptimizationOptions& options) {
  const auto* const choice = field.real_containing_oneof();
  return choice != nullptr && options.GetReflection()->HasOneof(options, choice);
}

absl::Status ReadOption(const std::string& name, absl::string_view value, v1::OptimizationOptions& options) {
  const FieldDescriptor* const field = FieldNamed(name);
  const std::string path = absl::StrCat(kObject, ".", field == nullptr ? name : field->name());
  if (field == nullptr) return absl::InvalidArgumentError(absl::StrCat(path, ": is no option of an optimization"));
  if (HasOther(*field, options)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": another option that excludes it is given as well"));
  }
  if (field->name() == "method" && KindOf(value) == JsonKind::kText) {
    C3PO_ASSIGN_OR_RETURN(const std::string word, TextOf(path, value));
    if (!absl::StartsWith(word, "METHOD_")) {
      C3PO_ASSIGN_OR_RETURN(const v1::Method method, MethodOfWord(path, word));
      options.set_method(method);
      return absl::OkStatus();
    }
  }
  v1::OptimizationOptions one;
  const std::string text = absl::StrCat("{\"", field->name(), "\":", value, "}");
  if (const auto read = google::protobuf::util::JsonStringToMessage(text, &one); !read.ok()) {
    // Of an object within, such as a filter, the path alone would not say what is wrong.
    const std::string what = field->message_type() ? absl::StrCat(": ", read.message().ToString()) : "";
    return absl::InvalidArgumentError(absl::StrCat(path, ": is no value of this option", what));
  }
  options.MergeFrom(one);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<bool> ReadC3poChoice(const JsonFields& fields, v1::OptimizationOptions& options) {
  const absl::string_view value = fields.Find(kObject);
  if (value.empty()) return false;
  if (KindOf(value) != JsonKind::kObject)
    return absl::InvalidArgumentError(absl::StrCat(kObject, ": must be an object of an optimization's options"));
  C3PO_ASSIGN_OR_RETURN(const JsonFields choice, JsonFields::Parse(value, absl::StrCat(kObject, ".")));
  for (const auto& [name, option] : choice.members()) {
    if (option != "null") C3PO_RETURN_IF_ERROR(ReadOption(name, option, options));
  }
  return true;
}

}  // namespace c3po
