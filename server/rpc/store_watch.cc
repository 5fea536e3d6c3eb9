#include "server/rpc/store_watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "index/base/store_away.h"
#include "index/base/utf8.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr size_t kNameBytesMax = 200;

// The bytes of a damaged name may be anything.
std::string Shown(const std::string& name) {
  return IsValidUtf8(name) ? std::string(Utf8Prefix(name, kNameBytesMax))
                           : absl::CHexEscape(name.substr(0, kNameBytesMax));
}

absl::string_view KindName(DamagedRow::Kind kind) {
  return kind == DamagedRow::Kind::kReference ? "reference" : "artifact";
}

std::string NameOf(const DamagedRow& row) {
  return absl::StrCat(KindName(row.kind), " \"", Shown(row.name), "\" of collection \"", Shown(row.collection), "\"");
}

}  // namespace

StoreWatch::StoreWatch(ReferenceStore* store, Metrics* metrics, absl::Duration every)
    : store_(store), metrics_(metrics) {
  Look();
  looks_ = std::make_unique<Periodic>(every, [this] { Look(); });
}

void StoreWatch::Look() {
  const absl::Status fault = store_->CheckPlace();
  const bool away = IsStoreAway(fault);
  const bool lost = !fault.ok() && !away;
  const bool told_lost = lost_.exchange(lost), told_away = std::exchange(away_, away);
  if (lost != told_lost || away != told_away) {
    const char* event = lost ? "store_lost" : away ? "store_away" : "store_back";
    Log(fault.ok() ? LogLevel::kInfo : LogLevel::kError, event, "",
        {{"store", store_->location()}, {"reason", fault.message()}});
  }
  if (metrics_ != nullptr) metrics_->SetStoreLost(lost);
  const std::vector<DamagedRow> rows = store_->Damaged();
  const absl::MutexLock lock(&mu_);
  fault_ = std::string(fault.message());
  TellDamage(rows);
}

void StoreWatch::TellDamage(const std::vector<DamagedRow>& rows) {
  const int64_t references = std::count_if(
      rows.begin(), rows.end(), [](const DamagedRow& row) { return row.kind == DamagedRow::Kind::kReference; });
  const int64_t artifacts = static_cast<int64_t>(rows.size()) - references;
  if (metrics_ != nullptr) {
    metrics_->SetDamagedRows(Metrics::StoredRow::kReference, references);
    metrics_->SetDamagedRows(Metrics::StoredRow::kArtifact, artifacts);
  }
  std::set<std::string> now;
  size_t lines = 0;
  for (const DamagedRow& row : rows) {
    std::string name = NameOf(row);
    if (!told_.contains(name) && ++lines <= kLinesMax) {
      Log(LogLevel::kError, "row_damaged", "",
          {{"kind", KindName(row.kind)},
           {"collection", Shown(row.collection)},
           {"name", Shown(row.name)},
           {"reason", row.problem}});
    }
    now.insert(std::move(name));
  }
  if (lines > kLinesMax) {
    Log(LogLevel::kError, "rows_damaged", "", {{"references", references}, {"artifacts", artifacts}});
  }
  told_ = std::move(now);
  damage_.clear();
  if (rows.empty()) return;
  // Without names: every caller sees it, and so does whoever asks the probes.
  damage_ = absl::StrCat("store ", store_->location(), ": ", references, " references and ", artifacts,
                         " artifacts are damaged and left out; the log names them (row_damaged)");
}

std::vector<std::string> StoreWatch::Warnings() const {
  std::vector<std::string> warnings;
  const absl::MutexLock lock(&mu_);
  for (const std::string& warning : {fault_, damage_}) {
    if (!warning.empty()) warnings.push_back(warning);
  }
  return warnings;
}

}  // namespace c3po
