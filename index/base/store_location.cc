#include "index/base/store_location.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

constexpr absl::string_view kHidden = "***";

// Of "postgresql://USER:PASSWORD@HOSTS": the last "@" before the path ends the user's part, so that a password with an
// "@" that was not escaped is hidden whole.
std::string WithoutUsersPassword(absl::string_view location) {
  const size_t begin = location.find("://") + 3;
  const size_t path = location.find_first_of("/?", begin);
  const absl::string_view authority = location.substr(begin, path == absl::string_view::npos ? path : path - begin);
  const size_t at = authority.rfind('@');
  const size_t colon = authority.find(':');
  if (at == absl::string_view::npos || colon > at) return std::string(location);
  return absl::StrCat(location.substr(0, begin + colon + 1), kHidden, location.substr(begin + at));
}

}  // namespace

std::string WithoutPassword(absl::string_view location) {
  const bool is_database = absl::StartsWith(location, "postgresql://") || absl::StartsWith(location, "postgres://");
  if (!is_database) return std::string(location);
  std::string shown = WithoutUsersPassword(location);
  for (const std::string& name :
       std::vector<std::string>{"?password=", "&password=", "?sslpassword=", "&sslpassword="}) {
    const size_t found = shown.find(name);
    if (found == std::string::npos) continue;
    const size_t value = found + name.size();
    const size_t end = shown.find('&', value);
    shown.replace(value, end == std::string::npos ? end : end - value, kHidden.data(), kHidden.size());
  }
  return shown;
}

}  // namespace c3po
