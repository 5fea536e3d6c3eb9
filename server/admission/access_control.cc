#include "server/admission/access_control.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr int64_t kFileBytesMax = int64_t{16} << 20;
constexpr size_t kNameMax = 64;
constexpr size_t kDigestDigits = 64;

std::optional<Role> RoleOf(absl::string_view name) {
  for (const Role role : {Role::kGenerate, Role::kReferences, Role::kAdminister}) {
    if (name == RoleName(role)) return role;
  }
  return std::nullopt;
}

bool IsName(absl::string_view name) {
  const auto allowed = [](unsigned char c) { return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-'; };
  return !name.empty() && name.size() <= kNameMax && std::all_of(name.begin(), name.end(), allowed);
}

bool IsDigest(absl::string_view digest) {
  const auto allowed = [](unsigned char c) { return absl::ascii_isxdigit(c); };
  return digest.size() == kDigestDigits && std::all_of(digest.begin(), digest.end(), allowed);
}

constexpr int64_t kRateMax = 1000000000000;

// Nothing: it is no rate.
std::optional<int64_t> RateOf(absl::string_view text) {
  if (text == "unlimited") return 0;
  int64_t rate = 0;
  if (!absl::SimpleAtoi(text, &rate) || rate < 1 || rate > kRateMax) return std::nullopt;
  return rate;
}

// Reads the fields behind the token's hash into `caller`. InvalidArgument says what is wrong.
absl::Status ReadFields(absl::Span<const absl::string_view> words, Caller& caller) {
  constexpr absl::string_view kKeys[] = {"read", "write", "calls/min", "tokens/min"};
  std::map<absl::string_view, absl::string_view> fields;
  for (const absl::string_view word : words) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(word, absl::MaxSplits('=', 1));
    if (!absl::StrContains(word, '=') ||
        std::find(std::begin(kKeys), std::end(kKeys), field.first) == std::end(kKeys)) {
      return absl::InvalidArgumentError(
          "must be NAME ROLE SHA256, then any of read=A,B write=C calls/min=N tokens/min=N");
    }
    if (!fields.emplace(field).second) return absl::InvalidArgumentError(absl::StrCat(field.first, "= is there twice"));
  }
  CollectionNames read, write;
  for (auto [key, names] : {std::pair("read", &read), std::pair("write", &write)}) {
    const auto field = fields.find(key);
    if (field == fields.end()) continue;
    absl::StatusOr<CollectionNames> parsed = ParseCollectionNames(field->second);
    if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat(key, "=: ", parsed.status().message()));
    *names = *std::move(parsed);
  }
  if (fields.count("read") + fields.count("write") > 0)
    caller.collections = CollectionAccess(std::move(read), std::move(write));
  for (auto [key, rate] : {std::pair("calls/min", &caller.rates.calls_per_minute),
                           std::pair("tokens/min", &caller.rates.tokens_per_minute)}) {
    const auto field = fields.find(key);
    if (field == fields.end()) continue;
    *rate = RateOf(field->second);
    if (!*rate)
      return absl::InvalidArgumentError(absl::StrCat(key, "=: must be a number in [1, ", kRateMax, "], or unlimited"));
  }
  return absl::OkStatus();
}

bool SameExceptRates(const Caller& a, const Caller& b) {
  return a.name == b.name && a.role == b.role && a.collections.SameAs(b.collections);
}

bool SameRates(const CallerRates& a, const CallerRates& b) {
  return a.calls_per_minute == b.calls_per_minute && a.tokens_per_minute == b.tokens_per_minute;
}

// Looks at every byte whatever it finds.
bool EqualInConstantTime(absl::string_view a, absl::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

absl::StatusOr<std::string> TextOf(const std::string& path) {
  absl::StatusOr<std::string> text = ReadWholeFile(path, kFileBytesMax);
  if (text.ok()) return text;
  return absl::Status(text.status().code(), absl::StrCat("cannot be read: ", text.status().message()));
}

absl::string_view TokenOf(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return {};
  return absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
}

}  // namespace

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kGenerate:
      return "generate";
    case Role::kReferences:
      return "references";
    case Role::kAdminister:
      return "administer";
  }
  return "";
}

absl::StatusOr<std::vector<AccessControl::Entry>> AccessControl::Parse(const std::string& path, const std::string& text,
                                                                       const std::vector<Entry>& known) {
  std::istringstream file(text);
  std::vector<Entry> entries;
  struct Line {
    int number;
    Caller caller;
  };
  std::map<std::string, Line> line_of_digest, line_of_name;
  const auto is_known = [&](const auto& same) {
    return std::any_of(known.begin(), known.end(), [&](const Entry& entry) { return same(entry); });
  };
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const absl::string_view content = absl::StripAsciiWhitespace(line);
    if (content.empty() || content.front() == '#') continue;
    const auto wrong_at = [&](int at, const auto&... what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", at, ": ", what...));
    };
    const auto wrong = [&](absl::string_view what) { return wrong_at(number, what); };
    const std::vector<absl::string_view> words = absl::StrSplit(content, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() < 3) return wrong("must be NAME ROLE SHA256");
    if (!IsName(words[0])) return wrong("the name must be 1 to 64 of letters, digits and ._-");
    const std::optional<Role> role = RoleOf(words[1]);
    if (!role) return wrong(absl::StrCat("role \"", words[1], "\" is not one of generate, references, administer"));
    if (!IsDigest(words[2])) return wrong("the third word must be the token's SHA-256, 64 hexadecimal digits");
    const std::string digest = absl::AsciiStrToLower(words[2]);
    if (entries.size() == kTokensMax) return wrong(absl::StrCat("holds more than ", kTokensMax, " tokens"));
    Entry entry{digest, {std::string(words[0]), *role, {}, {}, std::make_shared<Grant>()}};
    if (const absl::Status fields = ReadFields(absl::MakeConstSpan(words).subspan(3), entry.caller); !fields.ok())
      return wrong(absl::StrCat("\"", words[0], "\": ", fields.message()));
    const Line here{number, entry.caller};
    const auto [same, is_new] = line_of_digest.emplace(digest, here);
    if (!is_new) {
      const auto in_force = [&](const Line& one) {
        return is_known([&](const Entry& e) { return e.digest == digest && e.caller.name == one.caller.name; });
      };
      const bool earlier = in_force(here) && !in_force(same->second);
      const Line &wrong_one = earlier ? same->second : here, &other = earlier ? here : same->second;
      return wrong_at(wrong_one.number, "\"", wrong_one.caller.name, "\" has the same token as \"", other.caller.name,
                      "\" on line ", other.number);
    }
    const Line& namesake = line_of_name.emplace(entry.caller.name, here).first->second;
    if (!SameRates(namesake.caller.rates, entry.caller.rates)) {
      const auto in_force = [&](const Line& one) {
        return is_known([&](const Entry& e) {
          return e.caller.name == one.caller.name && SameRates(e.caller.rates, one.caller.rates);
        });
      };
      const bool earlier = in_force(here) && !in_force(namesake);
      return wrong_at(earlier ? namesake.number : number, "\"", entry.caller.name,
                      "\": calls/min= and tokens/min= must be those of its line ", earlier ? number : namesake.number);
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ":1: holds no token"));
  return entries;
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Load(const std::string& path, Metrics* metrics) {
  auto access = std::unique_ptr<AccessControl>(new AccessControl(path, metrics));
  const absl::MutexLock reading(&access->reading_);
  const absl::MutexLock lock(&access->mu_);
  access->text_ = TextOf(path);
  C3PO_RETURN_IF_ERROR(access->text_.status());
  C3PO_ASSIGN_OR_RETURN(access->entries_, Parse(path, *access->text_, {}));
  return access;
}

void AccessControl::LookAgain() {
  const absl::MutexLock reading(&reading_);
  absl::StatusOr<std::string> text = TextOf(path_);
  if (text == text_) return;
  text_ = std::move(text);
  std::vector<Entry> known;
  {
    const absl::MutexLock lock(&mu_);
    known = entries_;
  }
  absl::StatusOr<std::vector<Entry>> entries =
      text_.ok() ? Parse(path_, *text_, known) : absl::StatusOr<std::vector<Entry>>(text_.status());
  if (metrics_ != nullptr) {
    metrics_->SetReloadFailed(Metrics::WatchedFile::kTokens, !entries.ok());
    metrics_->CountReload(Metrics::WatchedFile::kTokens, entries.ok());
  }
  {
    const absl::MutexLock lock(&mu_);
    refusal_ = entries.status();
  }
  if (!entries.ok()) {
    Log(LogLevel::kWarning, "tokens_refused", "", {{"reason", entries.status().message()}});
    return;
  }
  const std::vector<std::shared_ptr<Grant>> revoked = KeepGrants(known, *entries);
  const size_t tokens = entries->size();
  {
    const absl::MutexLock lock(&mu_);
    entries_.swap(*entries);
  }
  // Once nobody is let in by them any more. Who was meanwhile asks a grant that is revoked.
  for (const std::shared_ptr<Grant>& grant : revoked) grant->Revoke();
  Log(LogLevel::kInfo, "tokens_loaded", "", {{"tokens", tokens}, {"revoked", revoked.size()}});
}

std::vector<std::shared_ptr<Grant>> AccessControl::KeepGrants(const std::vector<Entry>& known,
                                                              std::vector<Entry>& entries) {
  std::map<absl::string_view, Entry*> by_digest;
  for (Entry& entry : entries) by_digest.emplace(entry.digest, &entry);
  std::vector<std::shared_ptr<Grant>> revoked;
  for (const Entry& before : known) {
    const auto found = by_digest.find(before.digest);
    if (found != by_digest.end() && SameExceptRates(found->second->caller, before.caller)) {
      found->second->caller.grant = before.caller.grant;
    } else {
      revoked.push_back(before.caller.grant);
    }
  }
  return revoked;
}

absl::Status AccessControl::refusal() const {
  const absl::MutexLock lock(&mu_);
  return refusal_;
}

absl::StatusOr<Caller> AccessControl::Authenticate(absl::string_view authorization) const {
  const absl::string_view token = TokenOf(authorization);
  if (token.empty()) {
    return absl::UnauthenticatedError("this server wants a token: send the header authorization: Bearer TOKEN");
  }
  const std::string digest = Sha256::HexOf(token);
  std::optional<Caller> caller;
  const absl::MutexLock lock(&mu_);
  for (const Entry& entry : entries_) {
    if (EqualInConstantTime(entry.digest, digest)) caller = entry.caller;
  }
  if (!caller) return absl::UnauthenticatedError("the token is not one that this server knows");
  return *std::move(caller);
}

}  // namespace c3po
