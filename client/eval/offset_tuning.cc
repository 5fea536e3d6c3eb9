#include "client/eval/offset_tuning.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<ClientItemRunner::WithoutOffset> TuneOffsets(Client& client, absl::Span<const Task> tasks,
                                                            absl::Span<const EvalMethod> methods,
                                                            const OffsetTuningOptions& options,
                                                            const CallOptions& call_options) {
  ClientItemRunner::WithoutOffset without;
  for (const Task& task : tasks) {
    for (const EvalMethod& method : methods) {
      if (task.kind != TaskKind::kChoice || method.kind != MethodKind::kScore) continue;
      if (!method.optimization.use_offset()) continue;
      const std::string collection = CollectionOf(task, method);
      v1::TuneOffsetRequest request;
      request.set_collection(collection);
      *request.mutable_optimization() = method.optimization;
      request.mutable_optimization()->clear_use_offset();
      request.mutable_optimization()->clear_collection();
      request.set_max_references(options.references_max);
      request.set_keep(true);
      const absl::Status status = client.TuneOffset(
          request,
          [&](const v1::TuneOffsetResponse& progress) {
            if (options.on_progress) options.on_progress(method, collection, progress);
            return true;
          },
          call_options);
      if (absl::IsFailedPrecondition(status)) {
        without[{collection, method.label}] = std::string(status.message());
      } else if (!status.ok()) {
        return absl::Status(status.code(), absl::StrCat("the label offset of method ", method.label, ", collection ",
                                                        collection, ": ", status.message()));
      }
    }
  }
  return without;
}

}  // namespace c3po
