#include "index/base/escaped_exception.h"

#include <atomic>
#include <exception>
#include <new>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

std::array<std::atomic<int64_t>, kThreadKindNames.size()> caught{};
std::atomic<EscapedReporter> reporter{nullptr};

void Note(ThreadKind thread, absl::string_view what) noexcept {
  caught[static_cast<size_t>(thread)].fetch_add(1);
  const EscapedReporter hears = reporter.load();
  if (hears == nullptr) return;
  try {
    hears(thread, what);
  } catch (...) {  // It is counted all the same.
  }
}

// A status without a message takes no memory.
template <typename MakeMessage>
absl::Status StatusWith(absl::StatusCode code, MakeMessage make) noexcept {
  try {
    return absl::Status(code, make());
  } catch (...) {
    return absl::Status(code, "");
  }
}

absl::Status Escaped(ThreadKind thread, absl::string_view what) noexcept {
  Note(thread, what);
  return StatusWith(absl::StatusCode::kInternal, [what] { return absl::StrCat("an exception escaped: ", what); });
}

}  // namespace

absl::Status CatchEscaped(ThreadKind thread, absl::FunctionRef<absl::Status()> work) noexcept {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    Note(thread, "out of memory");
    return StatusWith(absl::StatusCode::kResourceExhausted, [] { return absl::string_view("out of memory"); });
  } catch (const std::exception& error) {
    return Escaped(thread, error.what());
  } catch (...) {
    return Escaped(thread, "of an unknown type");
  }
}

absl::Status CatchEscapedIn(ThreadKind thread, absl::FunctionRef<void()> work) noexcept {
  return CatchEscaped(thread, [work] {
    work();
    return absl::OkStatus();
  });
}

int64_t EscapedExceptions(ThreadKind thread) { return caught[static_cast<size_t>(thread)].load(); }

void ReportEscapedTo(EscapedReporter hears) { reporter.store(hears); }

}  // namespace c3po
