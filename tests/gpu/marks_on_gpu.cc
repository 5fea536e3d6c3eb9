#include "index/base/cuda/library.h"
#include "tests/gpu/marks_device.h"

namespace c3po {

MarksDevice OpenMarksDevice(std::string* why) {
  const auto runtime = cuda::OpenRuntime();
  if (!runtime.ok()) {
    *why = std::string(runtime.status().message());
    return {};
  }
  const auto model = cuda::OpenLibrary()->Kernels<cuda::ModelKernels>("c3po_model_kernels");
  const auto index = cuda::OpenLibrary()->Kernels<cuda::IndexKernels>("c3po_index_kernels");
  if (!model.ok() || !index.ok()) {
    *why = std::string((model.ok() ? index.status() : model.status()).message());
    return {};
  }
  return {*runtime, *model, *index, /*has_times=*/true};
}

}  // namespace c3po
