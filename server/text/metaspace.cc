#include "server/text/metaspace.h"

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {

absl::StatusOr<MetaspaceOptions> MetaspaceOptions::FromJson(const JsonField& json) {
  MetaspaceOptions options;
  C3PO_RETURN_IF_ERROR(  // str_rep is replacement again, in files of early versions.
      json.ExpectOnly({"type", "replacement", "str_rep", "prepend_scheme", "add_prefix_space", "split"}));
  C3PO_ASSIGN_OR_RETURN(const JsonField replacement, json.Member("replacement"));
  C3PO_ASSIGN_OR_RETURN(const char32_t mark, replacement.AsCharacter());
  AppendCodePoint(mark, &options.mark);
  C3PO_ASSIGN_OR_RETURN(const std::string scheme, json.StringMember("prepend_scheme", "always"));
  if (scheme == "always") {
    options.prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    options.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    options.prepend = Prepend::kNever;
  } else {
    return json.Error(absl::StrCat("prepend_scheme \"", scheme, "\" is none of always, first, never"));
  }
  C3PO_ASSIGN_OR_RETURN(const bool add_prefix_space, json.BoolMember("add_prefix_space", true));
  if (!add_prefix_space && json.Find("prepend_scheme").has_value() && options.prepend != Prepend::kNever) {
    return json.Error("add_prefix_space is false, but prepend_scheme is not \"never\"");
  }
  if (!add_prefix_space) options.prepend = Prepend::kNever;
  C3PO_ASSIGN_OR_RETURN(options.split, json.BoolMember("split", true));
  return options;
}

}  // namespace c3po
