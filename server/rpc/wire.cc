#include "server/rpc/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/utf8.h"

namespace c3po {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// The bytes read without a schema, where no text is checked, held against the schema. Empty: all text is valid.
std::string FindInvalidText(const Descriptor& type, const UnknownFieldSet& fields, const std::string& prefix) {
  std::map<int, int> seen;  // Occurrences by field number: the index of a repeated one.
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const int index = seen[field.number()]++;
    const std::string path =
        absl::StrCat(prefix, known->name(), known->is_repeated() ? absl::StrCat("[", index, "]") : std::string());
    if (known->type() == FieldDescriptor::TYPE_STRING && !IsValidUtf8(field.length_delimited())) return path;
    if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(field.length_delimited())) continue;
      std::string found = FindInvalidText(*known->message_type(), inner, path + ".");
      if (!found.empty()) return found;
    }
  }
  return {};
}

std::string Flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!bytes.Dump(&slices).ok()) return text;
  text.reserve(bytes.Length());
  for (const grpc::Slice& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return text;
}

}  // namespace

absl::Status ParseInto(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  // gRPC hands over a call that died before its message was read without one; an empty message has bytes, none of them.
  if (!bytes.Valid()) return absl::CancelledError("the client was gone before its request came");
  const std::string text = Flatten(bytes);
  if (message.ParseFromString(text)) return absl::OkStatus();
  UnknownFieldSet fields;
  if (fields.ParseFromString(text)) {
    const std::string path = FindInvalidText(*message.GetDescriptor(), fields, "");
    if (!path.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid UTF-8"));
  }
  return absl::InvalidArgumentError(absl::StrCat("request: is not a ", message.GetDescriptor()->full_name()));
}

absl::Status CheckMessageBytes(size_t bytes, size_t bytes_max) {
  if (bytes <= bytes_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the answer has ", bytes, " bytes, more than ", bytes_max, "; ask for less at once"));
}

absl::StatusOr<grpc::ByteBuffer> ToBytes(const google::protobuf::Message& message, size_t bytes_max) {
  if (const absl::Status status = CheckMessageBytes(message.ByteSizeLong(), bytes_max); !status.ok()) return status;
  std::string text;
  if (!message.SerializeToString(&text))
    return absl::InternalError(absl::StrCat("a ", message.GetDescriptor()->full_name(), " does not serialize"));
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

size_t BytesOf(const grpc::ByteBuffer& bytes) { return bytes.Valid() ? bytes.Length() : 0; }

}  // namespace c3po
