#ifndef C3PO_SERVER_COMPUTE_CUDA_HOST_COPIES_H_
#define C3PO_SERVER_COMPUTE_CUDA_HOST_COPIES_H_

#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "index/base/cuda/runtime.h"

namespace c3po::cuda {

// Copies between one stream's device memory and any host memory, by way of pinned memory: enqueuing one never waits
// for the device, unless all of a ring of pinned pieces are still being read by copies before. Engine thread only.
// Throws DeviceError, std::bad_alloc.
class HostCopies {
 public:
  HostCopies(Runtime& runtime, Stream stream);
  ~HostCopies();
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;

  // Pinned memory of at least `bytes` to write to, which Send then copies. One at a time.
  void* Prepare(int64_t bytes);
  // Enqueues a copy of the first `bytes` of what was prepared last.
  void Send(void* device, int64_t bytes);
  // `from` is free when the call returns. In pieces where it is large.
  void Upload(const void* from, int64_t bytes, void* device);
  // Waits for all work of the stream before it.
  void Download(const void* device, int64_t bytes, void* to);
  // Several at once, with one wait: where they lie one behind the other, each at a multiple of 16 bytes, until the next
  // call of either.
  struct Part {
    const void* device = nullptr;
    int64_t bytes = 0;
  };
  const char* Gather(absl::Span<const Part> parts);
  void Wait();

 private:
  static constexpr int64_t kPieceBytesMax = int64_t{8} << 20;  // of an upload

  struct Piece {
    void* host = nullptr;
    int64_t bytes = 0;
    Event sent = nullptr;
    int64_t wait = -1;  // Number of waits there had been when it was last sent; -1: it was not.
  };
  void* Grown(void*& host, int64_t& size, int64_t bytes);

  Runtime& runtime_;
  const Stream stream_;
  std::array<Piece, 4> ring_;
  size_t next_ = 0;  // of the ring
  void* received_ = nullptr;
  int64_t received_bytes_ = 0;
  int64_t waits_ = 0;  // for the whole stream
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_HOST_COPIES_H_
