#include "server/compute/backend.h"

#include <algorithm>

#include "server/compute/cpu/thread_pool.h"
#include "server/sampling/readout.h"

namespace c3po {

absl::Span<const float> Backend::HostView(const Matrix& from, std::vector<float>& staging) {
  staging.resize(static_cast<size_t>(from.rows * from.columns));
  Read(from, absl::MakeSpan(staging));
  return staging;
}

// Many rows are one reading, so that a device is waited for once.
void Backend::ReadOut(const Matrix& logits, absl::Span<const ReadoutRequest* const> requests,
                      absl::Span<Readout* const> readouts) {
  constexpr int64_t kReadMax = int64_t{8} << 20;  // Numbers that lie on the host twice for a moment.
  const int64_t width = logits.columns, rows_max = std::max<int64_t>(1, kReadMax / width);
  std::vector<float> staging;
  for (int64_t begin = 0; begin < logits.rows; begin += rows_max) {
    const int64_t count = std::min(rows_max, logits.rows - begin);
    const absl::Span<const float> all = HostView(logits.Rows(begin, count), staging);
    cpu::ThreadPool::Shared().Run(count, [&](int64_t i) {
      c3po::ReadOut(all.subspan(static_cast<size_t>(i * width), static_cast<size_t>(width)),
                    *requests[static_cast<size_t>(begin + i)], *readouts[static_cast<size_t>(begin + i)]);
    });
  }
}

}  // namespace c3po
