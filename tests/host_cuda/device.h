#ifndef C3PO_TESTS_HOST_CUDA_DEVICE_H_
#define C3PO_TESTS_HOST_CUDA_DEVICE_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "tests/host_cuda/collectives.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/host_cuda/stream.h"

// device.h by g++: calls into the execution model of the tests (kernel_run.h). Included by device.h alone.
namespace c3po::device {

// --- Host side. ---
template <class Args>
Error LaunchWith(bool early, void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream,
                 const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096, "one plain struct of at most 4 KiB");
  host_cuda::KernelLaunch launch;
  launch.name = host_cuda::KernelName(typeid(Args));
  launch.blocks[0] = grid.x;
  launch.blocks[1] = grid.y;
  launch.blocks[2] = grid.z;
  launch.threads = threads;
  launch.shared_bytes = shared_bytes;
  launch.early = early;
  launch.thread = [kernel, args] { kernel(args); };
  return host_cuda::Enqueue(stream, std::move(launch));
}

template <class Args>
Error Launch(void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream, const Args& args) {
  return LaunchWith(false, kernel, grid, threads, shared_bytes, stream, args);
}

template <class Args>
Error LaunchEarly(void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream, const Args& args) {
  return LaunchWith(true, kernel, grid, threads, shared_bytes, stream, args);
}

// --- Where a thread is. ---
C3PO_DEVICE int Thread() { return host_cuda::CurrentThread().thread; }
C3PO_DEVICE int Threads() { return host_cuda::CurrentThread().threads; }
C3PO_DEVICE int Lane() { return host_cuda::CurrentThread().thread % 32; }
C3PO_DEVICE int Warp() { return host_cuda::CurrentThread().thread / 32; }
C3PO_DEVICE int Warps() { return host_cuda::CurrentThread().threads / 32; }
C3PO_DEVICE int Block() { return host_cuda::CurrentThread().block[0]; }
C3PO_DEVICE int Blocks() { return host_cuda::CurrentThread().blocks[0]; }
C3PO_DEVICE int BlockY() { return host_cuda::CurrentThread().block[1]; }
C3PO_DEVICE int BlocksY() { return host_cuda::CurrentThread().blocks[1]; }
C3PO_DEVICE int BlockZ() { return host_cuda::CurrentThread().block[2]; }
C3PO_DEVICE int BlocksZ() { return host_cuda::CurrentThread().blocks[2]; }

C3PO_DEVICE void* SharedMemory() { return host_cuda::SharedBytes(); }

// --- Collectives. ---
C3PO_DEVICE void SyncBlock(Place place) {
  host_cuda::Arrival arrival{&host_cuda::kSyncBlock, place};
  host_cuda::WaitForGroup(arrival);
}

C3PO_DEVICE void SyncWarp(Place place) {
  host_cuda::Arrival arrival{&host_cuda::kSyncWarp, place};
  host_cuda::WaitForGroup(arrival);
}

template <class T>
C3PO_DEVICE T ShuffleAs(const host_cuda::CollectiveKind& kind, T value, int from_lane, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a plain value of 4 or 8 bytes");
  host_cuda::ShuffleArrival arrival{{&kind, place}, {}, from_lane, {}};
  std::memcpy(arrival.given, &value, sizeof(T));
  host_cuda::WaitForGroup(arrival);
  std::memcpy(&value, arrival.got, sizeof(T));
  return value;
}

template <class T>
C3PO_DEVICE T Shuffle(T value, int from_lane, Place place) {
  return ShuffleAs(host_cuda::kShuffle, value, from_lane & 31, place);
}
template <class T>
C3PO_DEVICE T ShuffleXor(T value, int mask, Place place) {
  return ShuffleAs(host_cuda::kShuffleXor, value, Lane() ^ host_cuda::CheckedLaneArgument(mask), place);
}
template <class T>
C3PO_DEVICE T ShuffleDown(T value, int delta, Place place) {
  const int from = Lane() + host_cuda::CheckedLaneArgument(delta);
  return ShuffleAs(host_cuda::kShuffleDown, value, from < 32 ? from : Lane(), place);
}
template <class T>
C3PO_DEVICE T ShuffleUp(T value, int delta, Place place) {
  const int from = Lane() - host_cuda::CheckedLaneArgument(delta);
  return ShuffleAs(host_cuda::kShuffleUp, value, from >= 0 ? from : Lane(), place);
}

C3PO_DEVICE uint32_t Ballot(bool predicate, Place place) {
  return host_cuda::Vote(host_cuda::kBallot, predicate, place);
}
C3PO_DEVICE bool Any(bool predicate, Place place) { return host_cuda::Vote(host_cuda::kAny, predicate, place) != 0; }
C3PO_DEVICE bool All(bool predicate, Place place) {
  return host_cuda::Vote(host_cuda::kAll, predicate, place) == 0xffffffffu;
}

C3PO_DEVICE void MultiplyAdd16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  host_cuda::ProductArrival arrival{{&host_cuda::kMultiplyAdd, place}, d, a, b};
  host_cuda::WaitForGroup(arrival);
}

C3PO_DEVICE uint32_t Transpose8x8(uint32_t tile, Place place) {
  host_cuda::MatrixArrival arrival{{&host_cuda::kTranspose, place}, nullptr, {tile}};
  host_cuda::WaitForGroup(arrival);
  return arrival.words[0];
}

C3PO_DEVICE void LoadMatrices4(uint32_t (&r)[4], const void* shared_row, Place place) {
  host_cuda::CheckShared(shared_row, 16, 16, "LoadMatrices4");
  host_cuda::MatrixArrival arrival{{&host_cuda::kLoadMatrices, place}, shared_row, {}};
  host_cuda::WaitForGroup(arrival);
  std::copy_n(arrival.words, 4, r);
}

// --- Copies beside the thread. ---
C3PO_DEVICE void CopyAsync16(void* shared, const void* global) { host_cuda::BeginCopy(shared, global, true, 16); }
C3PO_DEVICE void CopyAsyncOrZero16(void* shared, const void* global, bool valid) {
  host_cuda::BeginCopy(shared, global, valid, 16);
}
template <int kBytes>
C3PO_DEVICE void CopyAsyncOrZero(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async copies");
  host_cuda::BeginCopy(shared, global, valid, kBytes);
}
C3PO_DEVICE void CommitCopies() { host_cuda::CommitCopyGroup(); }
template <int kGroupsLeft>
C3PO_DEVICE void WaitCopies() {
  static_assert(kGroupsLeft >= 0);
  host_cuda::WaitCopyGroups(kGroupsLeft);
}

C3PO_DEVICE Words4 LoadOnce(const Words4* global) {
  host_cuda::CheckAligned(global, "LoadOnce");
  return *global;
}

// --- Atomics. ---
template <class T, class Change>
C3PO_DEVICE T AtomicChange(T* to, const Change& change) {
  host_cuda::MaybeYield();
  const T old = *to;
  *to = change(old);
  return old;
}

// Sums wrap, as on a GPU.
C3PO_DEVICE int AtomicAdd(int* to, int value) {
  return AtomicChange(
      to, [=](int old) { return static_cast<int>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value)); });
}
C3PO_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t value) {
  return AtomicChange(to, [=](uint32_t old) { return old + value; });
}
C3PO_DEVICE uint64_t AtomicAdd(uint64_t* to, uint64_t value) {
  return AtomicChange(to, [=](uint64_t old) { return old + value; });
}
template <class T>
C3PO_DEVICE T AtomicLarger(T* to, T value) {
  return AtomicChange(to, [=](T old) { return std::max(old, value); });
}
template <class T>
C3PO_DEVICE T AtomicSmaller(T* to, T value) {
  return AtomicChange(to, [=](T old) { return std::min(old, value); });
}
template <class T>
C3PO_DEVICE T AtomicReplace(T* to, T value) {
  return AtomicChange(to, [=](T) { return value; });
}
template <class T>
C3PO_DEVICE T AtomicReplaceIf(T* to, T expected, T value) {
  return AtomicChange(to, [=](T old) { return old == expected ? value : old; });
}
C3PO_DEVICE int AtomicMax(int* to, int value) { return AtomicLarger(to, value); }
C3PO_DEVICE uint32_t AtomicMax(uint32_t* to, uint32_t value) { return AtomicLarger(to, value); }
C3PO_DEVICE uint64_t AtomicMax(uint64_t* to, uint64_t value) { return AtomicLarger(to, value); }
C3PO_DEVICE int AtomicMin(int* to, int value) { return AtomicSmaller(to, value); }
C3PO_DEVICE uint32_t AtomicMin(uint32_t* to, uint32_t value) { return AtomicSmaller(to, value); }
C3PO_DEVICE uint64_t AtomicMin(uint64_t* to, uint64_t value) { return AtomicSmaller(to, value); }
C3PO_DEVICE uint32_t AtomicOr(uint32_t* to, uint32_t bits) {
  return AtomicChange(to, [=](uint32_t old) { return old | bits; });
}
C3PO_DEVICE uint32_t AtomicAnd(uint32_t* to, uint32_t bits) {
  return AtomicChange(to, [=](uint32_t old) { return old & bits; });
}
C3PO_DEVICE int AtomicExchange(int* to, int value) { return AtomicReplace(to, value); }
C3PO_DEVICE uint32_t AtomicExchange(uint32_t* to, uint32_t value) { return AtomicReplace(to, value); }
C3PO_DEVICE uint64_t AtomicExchange(uint64_t* to, uint64_t value) { return AtomicReplace(to, value); }
C3PO_DEVICE uint32_t AtomicCompareExchange(uint32_t* to, uint32_t expected, uint32_t value) {
  return AtomicReplaceIf(to, expected, value);
}
C3PO_DEVICE uint64_t AtomicCompareExchange(uint64_t* to, uint64_t expected, uint64_t value) {
  return AtomicReplaceIf(to, expected, value);
}
C3PO_DEVICE void ThreadFence() { host_cuda::MaybeYield(); }

// --- Arithmetic. Built without contraction (c3po_host_kernels). ---
C3PO_DEVICE float Add(float a, float b) { return a + b; }
C3PO_DEVICE float Subtract(float a, float b) { return a - b; }
C3PO_DEVICE float Multiply(float a, float b) { return a * b; }
C3PO_DEVICE float Divide(float a, float b) { return a / b; }
C3PO_DEVICE float SquareRoot(float x) { return std::sqrt(x); }
C3PO_DEVICE float FusedMultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }
C3PO_DEVICE float Exp(float x) { return std::exp(x); }
C3PO_DEVICE float Log(float x) { return std::log(x); }
C3PO_DEVICE float Rsqrt(float x) { return 1 / std::sqrt(x); }
C3PO_DEVICE float Sin(float x) { return std::sin(x); }
C3PO_DEVICE float Cos(float x) { return std::cos(x); }

// --- Bits and small floats. ---
C3PO_DEVICE int CountBits(uint32_t bits) { return std::popcount(bits); }
C3PO_DEVICE int LowestBit(uint32_t bits) { return std::countr_zero(bits); }
C3PO_DEVICE uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
C3PO_DEVICE float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
C3PO_DEVICE float ToFloat(BFloat16 x) { return FloatOf(uint32_t{x.bits} << 16); }
C3PO_DEVICE float ToFloat(Float16 x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }
C3PO_DEVICE BFloat16 ToBFloat16(float x) {
  const uint32_t bits = BitsOf(x);
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
C3PO_DEVICE Float16 ToFloat16(float x) {
  if (std::isnan(x)) return {0x7fff};
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
}
C3PO_DEVICE uint32_t PackBFloat16(float low, float high) {
  return uint32_t{ToBFloat16(low).bits} | uint32_t{ToBFloat16(high).bits} << 16;
}

// A float32 keeps more than twice the bits of a bfloat16, so that rounding twice is rounding once.
C3PO_DEVICE uint32_t SubtractBFloat16Pairs(uint32_t a, uint32_t b) {
  return PackBFloat16(FloatOf(a << 16) - FloatOf(b << 16), FloatOf(a & 0xffff0000u) - FloatOf(b & 0xffff0000u));
}

// --- Programmatic dependent launch: a block of an early kernel may begin before the kernel in front (KernelRun). ---
C3PO_DEVICE void WaitForPreviousKernel() { host_cuda::WaitForKernelBefore(); }
C3PO_DEVICE void LetNextKernelStart() {}

}  // namespace c3po::device

#endif  // C3PO_TESTS_HOST_CUDA_DEVICE_H_
