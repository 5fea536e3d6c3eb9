#include "server/compute/cuda/host_copies.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "server/compute/cuda/device_memory.h"

namespace c3po::cuda {

HostCopies::HostCopies(Runtime& runtime, Stream stream) : runtime_(runtime), stream_(stream) {}

// Errors of a device that is ended anyway.
HostCopies::~HostCopies() {
  static_cast<void>(runtime_.Synchronize(stream_));
  for (const Piece& piece : ring_) {
    if (piece.host != nullptr) static_cast<void>(runtime_.FreePinned(piece.host));
    if (piece.sent != nullptr) static_cast<void>(runtime_.DeleteEvent(piece.sent));
  }
  if (received_ != nullptr) static_cast<void>(runtime_.FreePinned(received_));
}

// Pinned memory of at least `bytes`, with room for a little more than was asked before. Nobody may be using it.
void* HostCopies::Grown(void*& host, int64_t& size, int64_t bytes) {
  if (size >= bytes) return host;
  if (host != nullptr) Check(runtime_.FreePinned(host), "freeing pinned memory");
  host = nullptr;
  size = 0;
  const int64_t grown = DevicePool::ClassOf(bytes + bytes / 4);
  if (runtime_.AllocatePinned(grown, &host) != nullptr) throw std::bad_alloc();
  size = grown;
  return host;
}

void* HostCopies::Prepare(int64_t bytes) {
  Piece& piece = ring_[next_];
  if (piece.sent == nullptr) Check(runtime_.NewEvent(&piece.sent), "making an event");
  if (piece.wait == waits_) Check(runtime_.Synchronize(piece.sent), "copying to the device");
  piece.wait = -1;
  return Grown(piece.host, piece.bytes, std::max<int64_t>(bytes, 1));
}

void HostCopies::Send(void* device, int64_t bytes) {
  if (bytes == 0) return;
  Piece& piece = ring_[next_];
  Check(runtime_.CopyToDevice(stream_, device, piece.host, bytes), "copying to the device");
  Check(runtime_.Record(stream_, piece.sent), "recording an event");
  piece.wait = waits_;
  next_ = (next_ + 1) % ring_.size();
}

void HostCopies::Upload(const void* from, int64_t bytes, void* device) {
  for (int64_t done = 0; done < bytes; done += kPieceBytesMax) {
    const int64_t count = std::min(kPieceBytesMax, bytes - done);
    std::memcpy(Prepare(count), static_cast<const char*>(from) + done, static_cast<size_t>(count));
    Send(static_cast<char*>(device) + done, count);
  }
}

const char* HostCopies::Gather(absl::Span<const Part> parts) {
  const auto padded = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
  int64_t all = 0;
  for (const Part& part : parts) all += padded(part.bytes);
  char* const host = static_cast<char*>(Grown(received_, received_bytes_, std::max<int64_t>(all, 1)));
  int64_t at = 0;
  for (const Part& part : parts) {
    if (part.bytes > 0) Check(runtime_.CopyToHost(stream_, host + at, part.device, part.bytes), "copying to the host");
    at += padded(part.bytes);
  }
  Wait();
  return host;
}

void HostCopies::Download(const void* device, int64_t bytes, void* to) {
  const Part part{device, bytes};
  const char* const host = Gather({&part, 1});
  if (bytes > 0) std::memcpy(to, host, static_cast<size_t>(bytes));
}

void HostCopies::Wait() {
  Check(runtime_.Synchronize(stream_), "computing");
  ++waits_;
}

}  // namespace c3po::cuda
