#include "index/store/damaged_rows.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

constexpr char kCure[] = "; write it anew (import it, calibrate, learn), delete it, or restore the store from a backup";

}  // namespace

void DamagedRows::Note(DamagedRow::Kind kind, absl::string_view collection, absl::string_view name,
                       absl::string_view problem) {
  rows_[{kind, std::string(collection), std::string(name)}] = std::string(problem);
}

void DamagedRows::Forget(DamagedRow::Kind kind, absl::string_view collection, absl::string_view name) {
  rows_.erase({kind, std::string(collection), std::string(name)});
}

std::vector<DamagedRow> DamagedRows::List() const {
  std::vector<DamagedRow> rows;
  for (const auto& [key, problem] : rows_) {
    const auto& [kind, collection, name] = key;
    rows.push_back({kind, collection, name, absl::StrCat(problem, kCure)});
  }
  return rows;
}

absl::Status DamagedRows::CheckReference(absl::string_view store, absl::string_view id) const {
  for (const auto& [key, problem] : rows_) {
    if (std::get<0>(key) != DamagedRow::Kind::kReference || std::get<2>(key) != id) continue;
    return absl::DataLossError(absl::StrCat("store ", store, ": reference \"", id, "\": ", problem, kCure));
  }
  return absl::OkStatus();
}

absl::Status DamagedRows::LookAgain(absl::FunctionRef<absl::Status(const DamagedRow&)> look) {
  std::map<Key, std::string> before = std::exchange(rows_, {});
  for (const auto& [key, problem] : before) {
    const auto& [kind, collection, name] = key;
    absl::Status looked = look({kind, collection, name, problem});
    if (looked.ok()) continue;
    rows_ = std::move(before);
    return looked;
  }
  return absl::OkStatus();
}

}  // namespace c3po
