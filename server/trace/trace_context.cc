#include "server/trace/trace_context.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace c3po {
namespace {

constexpr size_t kTraceIdAt = 3, kSpanIdAt = 36, kFlagsAt = 53, kTraceparentBytes = 55;
constexpr size_t kStateMembersMax = 32, kStateKeyBytesMax = 256, kStateValueBytesMax = 256;

// 0 to 15; -1: no digit in lower case.
int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// False: not all of them are digits.
bool ReadHex(absl::string_view digits, absl::Span<uint8_t> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const int high = HexValue(digits[2 * i]), low = HexValue(digits[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

bool IsZero(absl::Span<const uint8_t> id) {
  return std::all_of(id.begin(), id.end(), [](uint8_t byte) { return byte == 0; });
}

bool IsStateKey(absl::string_view key) {
  const auto first = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c); };
  const auto further = [&](char c) {
    return first(c) || absl::string_view("_-*/@").find(c) != absl::string_view::npos;
  };
  return !key.empty() && key.size() <= kStateKeyBytesMax && first(key.front()) &&
         std::all_of(key.begin(), key.end(), further);
}

bool IsStateValue(absl::string_view value) {
  const auto printable = [](char c) { return c >= ' ' && c <= '~' && c != ',' && c != '='; };
  return !value.empty() && value.size() <= kStateValueBytesMax && value.back() != ' ' &&
         std::all_of(value.begin(), value.end(), printable);
}

// Empty: there is none, or it is not valid.
std::string ParseState(absl::string_view tracestate) {
  std::vector<absl::string_view> members, keys;
  for (absl::string_view member : absl::StrSplit(tracestate, ',')) {
    while (!member.empty() && (member.front() == ' ' || member.front() == '\t')) member.remove_prefix(1);
    while (!member.empty() && (member.back() == ' ' || member.back() == '\t')) member.remove_suffix(1);
    if (member.empty()) continue;  // Allowed between commas.
    const size_t equals = member.find('=');
    if (equals == absl::string_view::npos || members.size() == kStateMembersMax) return "";
    const absl::string_view key = member.substr(0, equals);
    if (!IsStateKey(key) || !IsStateValue(member.substr(equals + 1))) return "";
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) return "";
    keys.push_back(key);
    members.push_back(member);
  }
  const auto bytes = [&members] {
    size_t sum = members.empty() ? 0 : members.size() - 1;
    for (const absl::string_view member : members) sum += member.size();
    return sum;
  };
  while (bytes() > kTraceStateBytesMax) {
    const auto is_long = [](absl::string_view member) { return member.size() > kLongMemberBytes; };
    const auto last_long = std::find_if(members.rbegin(), members.rend(), is_long);
    members.erase(last_long == members.rend() ? members.end() - 1 : last_long.base() - 1);
  }
  return absl::StrJoin(members, ",");
}

}  // namespace

std::optional<TraceContext> ParseTraceContext(absl::string_view traceparent, absl::string_view tracestate) {
  if (traceparent.size() < kTraceparentBytes) return std::nullopt;
  std::array<uint8_t, 1> version, flags;
  if (!ReadHex(traceparent.substr(0, 2), absl::MakeSpan(version)) || version[0] == 0xff) return std::nullopt;
  const bool longer = traceparent.size() > kTraceparentBytes;
  if (longer && (version[0] == 0 || traceparent[kTraceparentBytes] != '-')) return std::nullopt;
  for (const size_t dash : {kTraceIdAt - 1, kSpanIdAt - 1, kFlagsAt - 1}) {
    if (traceparent[dash] != '-') return std::nullopt;
  }
  TraceContext context;
  if (!ReadHex(traceparent.substr(kTraceIdAt), absl::MakeSpan(context.trace_id)) || IsZero(context.trace_id) ||
      !ReadHex(traceparent.substr(kSpanIdAt), absl::MakeSpan(context.span_id)) || IsZero(context.span_id) ||
      !ReadHex(traceparent.substr(kFlagsAt), absl::MakeSpan(flags))) {
    return std::nullopt;
  }
  context.flags = flags[0] & (TraceContext::kSampledFlag | TraceContext::kRandomFlag);
  context.state = ParseState(tracestate);
  return context;
}

std::string TraceHex(absl::Span<const uint8_t> id) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string digits;
  for (const uint8_t byte : id) {
    digits.push_back(kDigits[byte >> 4]);
    digits.push_back(kDigits[byte & 15]);
  }
  return digits;
}

}  // namespace c3po
