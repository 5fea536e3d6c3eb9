#include "index/search/cuda/device_pathways.h"

#include <algorithm>
#include <utility>

#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<std::unique_ptr<DevicePathways>> DevicePathways::Create(IndexDevice* device, int layers, int experts,
                                                                       int views) {
  RowShape shape;
  shape.segments = layers;
  shape.dimension = experts;
  shape.views = views;
  if (!shape.Fits(device->properties())) {
    return absl::FailedPreconditionError("index device: pathways are too long for its kernels");
  }
  std::unique_ptr<DevicePathways> pathways(new DevicePathways(device));
  C3PO_ASSIGN_OR_RETURN(pathways->rows_, DeviceRows::Create(device, shape));
  return pathways;
}

void DevicePathways::Add(absl::Span<const NewRow> rows) {
  if (!usable() || rows.empty()) return;
  WriterLock lock(mutex_);
  IndexChange change(device_);
  const absl::Status added = rows_->Add(change, rows);
  const absl::Status finished = change.Finish(rows_->changed());
  Settle(added.ok() ? finished : added);
}

void DevicePathways::Show(absl::Span<const Shown> shown) {
  if (!usable() || shown.empty()) return;
  WriterLock lock(mutex_);
  IndexChange change(device_);
  for (const Shown& each : shown) {
    if (rows_->Holds(each.label)) rows_->SetViews(change, each.label, each.views);
  }
  Settle(change.Finish(rows_->changed()));
}

void DevicePathways::Remove(absl::Span<const int64_t> labels) {
  if (!usable() || labels.empty()) return;
  WriterLock lock(mutex_);
  IndexChange change(device_);
  for (const int64_t label : labels) {
    if (rows_->Holds(label)) rows_->Remove(change, label);
  }
  Settle(change.Finish(rows_->changed()));
}

absl::StatusOr<std::vector<LabeledDistance>> DevicePathways::Search(absl::Span<const float> rows,
                                                                    absl::Span<const int> layers, int k, int view,
                                                                    const LabelFilter* filter) const {
  if (!usable()) return absl::UnavailableError("index device: the pathways are not on it");
  C3PO_ASSIGN_OR_RETURN(const IndexDevice::Lease slot, device_->AcquireSlot());
  DeviceRows::PendingScan pending;
  {
    ReaderLock lock(mutex_);
    const DeviceRows::Admitted admitted = rows_->Admit(filter, view);
    const int wanted = static_cast<int>(std::min<int64_t>(k, admitted.count));
    if (wanted == 0) return std::vector<LabeledDistance>();
    if (!DeviceRows::CanFind(wanted)) return absl::OutOfRangeError("index device: k is too large");
    C3PO_ASSIGN_OR_RETURN(pending, rows_->EnqueueScan(*slot, rows, layers, wanted, admitted));
  }
  C3PO_RETURN_IF_ERROR(slot->Wait());
  C3PO_ASSIGN_OR_RETURN(std::vector<std::vector<LabeledDistance>> found, rows_->ReadFound(*slot, pending));
  return std::move(found.front());
}

}  // namespace c3po
