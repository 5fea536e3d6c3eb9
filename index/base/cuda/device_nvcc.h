#ifndef C3PO_INDEX_BASE_CUDA_DEVICE_NVCC_H_
#define C3PO_INDEX_BASE_CUDA_DEVICE_NVCC_H_

#include <cuda_runtime.h>

#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>

// device.h by nvcc, for sm_80 and later. Included by device.h alone.
namespace c3po::device {

// --- Host side. A Stream is a cudaStream_t. ---
inline constexpr int kSharedBytesWithoutAsking = 48 * 1024;

// What failed is taken from the thread's last error, or the next launch would be blamed for it.
inline Error ErrorOf(cudaError_t result) {
  if (result == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  return cudaGetErrorString(result);
}

// Lets `kernel` have that much dynamic shared memory. The limit only grows.
inline Error RaiseSharedLimit(const void* kernel, int bytes) {
  static std::mutex mutex;
  static std::map<const void*, int>* const raised = new std::map<const void*, int>;
  const std::lock_guard<std::mutex> lock(mutex);
  int& limit = raised->try_emplace(kernel, kSharedBytesWithoutAsking).first->second;
  if (bytes <= limit) return nullptr;
  const cudaError_t result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (result == cudaSuccess) limit = bytes;
  return ErrorOf(result);
}

inline bool HasEarlyLaunch() {
  static const bool has = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
  }();
  return has;
}

template <class Args>
Error LaunchWith(bool early, void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream,
                 const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096, "one plain struct of at most 4 KiB");
  if (threads % 32 != 0) return "a block is not of whole warps";
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (const Error error = RaiseSharedLimit(function, shared_bytes); error != nullptr) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = early && HasEarlyLaunch() ? 1 : 0;
  return ErrorOf(cudaLaunchKernelEx(&config, kernel, args));
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
C3PO_DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
C3PO_DEVICE int Threads() { return static_cast<int>(blockDim.x); }
C3PO_DEVICE int Lane() { return static_cast<int>(threadIdx.x % 32); }
C3PO_DEVICE int Warp() { return static_cast<int>(threadIdx.x / 32); }
C3PO_DEVICE int Warps() { return static_cast<int>(blockDim.x / 32); }
C3PO_DEVICE int Block() { return static_cast<int>(blockIdx.x); }
C3PO_DEVICE int Blocks() { return static_cast<int>(gridDim.x); }
C3PO_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
C3PO_DEVICE int BlocksY() { return static_cast<int>(gridDim.y); }
C3PO_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
C3PO_DEVICE int BlocksZ() { return static_cast<int>(gridDim.z); }

C3PO_DEVICE void* SharedMemory() {
  extern __shared__ __align__(128) unsigned char c3po_shared_memory[];
  return c3po_shared_memory;
}

C3PO_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// --- Collectives. ---
inline constexpr uint32_t kAllLanes = 0xffffffffu;

C3PO_DEVICE void SyncBlock(Place) { __syncthreads(); }
C3PO_DEVICE void SyncWarp(Place) { __syncwarp(); }

// The word of 4 or 8 bytes that holds a T in shuffles.
template <class T>
using ShuffledWord = std::conditional_t<sizeof(T) == 4, uint32_t, unsigned long long>;

template <class To, class From>
C3PO_DEVICE To SameBits(const From& from) {
  static_assert(
      std::is_trivially_copyable_v<From> && sizeof(From) == sizeof(To) && (sizeof(To) == 4 || sizeof(To) == 8),
      "a plain value of 4 or 8 bytes");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
C3PO_DEVICE T Shuffle(T value, int from_lane, Place) {
  return SameBits<T>(__shfl_sync(kAllLanes, SameBits<ShuffledWord<T>>(value), from_lane));
}
template <class T>
C3PO_DEVICE T ShuffleXor(T value, int mask, Place) {
  return SameBits<T>(__shfl_xor_sync(kAllLanes, SameBits<ShuffledWord<T>>(value), mask));
}
template <class T>
C3PO_DEVICE T ShuffleDown(T value, int delta, Place) {
  return SameBits<T>(__shfl_down_sync(kAllLanes, SameBits<ShuffledWord<T>>(value), static_cast<unsigned>(delta)));
}
template <class T>
C3PO_DEVICE T ShuffleUp(T value, int delta, Place) {
  return SameBits<T>(__shfl_up_sync(kAllLanes, SameBits<ShuffledWord<T>>(value), static_cast<unsigned>(delta)));
}

C3PO_DEVICE uint32_t Ballot(bool predicate, Place) { return __ballot_sync(kAllLanes, predicate); }
C3PO_DEVICE bool Any(bool predicate, Place) { return __any_sync(kAllLanes, predicate) != 0; }
C3PO_DEVICE bool All(bool predicate, Place) { return __all_sync(kAllLanes, predicate) != 0; }

C3PO_DEVICE void MultiplyAdd16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

C3PO_DEVICE uint32_t Transpose8x8(uint32_t tile, Place) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(tile));
  return transposed;
}

C3PO_DEVICE void LoadMatrices4(uint32_t (&r)[4], const void* shared_row, Place) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

// --- Copies beside the thread. ---
C3PO_DEVICE void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(SharedAddress(shared)), "l"(global) : "memory");
}

C3PO_DEVICE void CopyAsyncOrZero16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

template <int kBytes>
C3PO_DEVICE void CopyAsyncOrZero(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async copies");
  if constexpr (kBytes == 16) {
    CopyAsyncOrZero16(shared, global, valid);
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(SharedAddress(shared)), "l"(global), "n"(kBytes),
                 "r"(valid ? kBytes : 0)
                 : "memory");
  }
}

C3PO_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kGroupsLeft>
C3PO_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

C3PO_DEVICE Words4 LoadOnce(const Words4* global) {
  Words4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x[0]), "=r"(words.x[1]), "=r"(words.x[2]), "=r"(words.x[3])
               : "l"(global));
  return words;
}

// --- Atomics. CUDA's 64-bit ones take unsigned long long, which uint64_t is not on Linux. ---
using CudaWord64 = unsigned long long;
C3PO_DEVICE CudaWord64* AsCudaWord(uint64_t* word) { return reinterpret_cast<CudaWord64*>(word); }

C3PO_DEVICE int AtomicAdd(int* to, int value) { return atomicAdd(to, value); }
C3PO_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
C3PO_DEVICE uint64_t AtomicAdd(uint64_t* to, uint64_t value) { return atomicAdd(AsCudaWord(to), CudaWord64{value}); }
C3PO_DEVICE int AtomicMax(int* to, int value) { return atomicMax(to, value); }
C3PO_DEVICE uint32_t AtomicMax(uint32_t* to, uint32_t value) { return atomicMax(to, value); }
C3PO_DEVICE uint64_t AtomicMax(uint64_t* to, uint64_t value) { return atomicMax(AsCudaWord(to), CudaWord64{value}); }
C3PO_DEVICE int AtomicMin(int* to, int value) { return atomicMin(to, value); }
C3PO_DEVICE uint32_t AtomicMin(uint32_t* to, uint32_t value) { return atomicMin(to, value); }
C3PO_DEVICE uint64_t AtomicMin(uint64_t* to, uint64_t value) { return atomicMin(AsCudaWord(to), CudaWord64{value}); }
C3PO_DEVICE uint32_t AtomicOr(uint32_t* to, uint32_t bits) { return atomicOr(to, bits); }
C3PO_DEVICE uint32_t AtomicAnd(uint32_t* to, uint32_t bits) { return atomicAnd(to, bits); }
C3PO_DEVICE int AtomicExchange(int* to, int value) { return atomicExch(to, value); }
C3PO_DEVICE uint32_t AtomicExchange(uint32_t* to, uint32_t value) { return atomicExch(to, value); }
C3PO_DEVICE uint64_t AtomicExchange(uint64_t* to, uint64_t value) {
  return atomicExch(AsCudaWord(to), CudaWord64{value});
}
C3PO_DEVICE uint32_t AtomicCompareExchange(uint32_t* to, uint32_t expected, uint32_t value) {
  return atomicCAS(to, expected, value);
}
C3PO_DEVICE uint64_t AtomicCompareExchange(uint64_t* to, uint64_t expected, uint64_t value) {
  return atomicCAS(AsCudaWord(to), CudaWord64{expected}, CudaWord64{value});
}
C3PO_DEVICE void ThreadFence() { __threadfence(); }

// --- Arithmetic. ---
C3PO_DEVICE float Add(float a, float b) { return __fadd_rn(a, b); }
C3PO_DEVICE float Subtract(float a, float b) { return __fsub_rn(a, b); }
C3PO_DEVICE float Multiply(float a, float b) { return __fmul_rn(a, b); }
C3PO_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
C3PO_DEVICE float SquareRoot(float x) { return __fsqrt_rn(x); }
C3PO_DEVICE float FusedMultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
C3PO_DEVICE float Exp(float x) { return expf(x); }
C3PO_DEVICE float Log(float x) { return logf(x); }
C3PO_DEVICE float Rsqrt(float x) { return rsqrtf(x); }
C3PO_DEVICE float Sin(float x) { return sinf(x); }
C3PO_DEVICE float Cos(float x) { return cosf(x); }

// --- Bits and small floats. ---
C3PO_DEVICE int CountBits(uint32_t bits) { return __popc(bits); }
C3PO_DEVICE int LowestBit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
C3PO_DEVICE uint32_t BitsOf(float x) { return __float_as_uint(x); }
C3PO_DEVICE float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
C3PO_DEVICE float ToFloat(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }

C3PO_DEVICE float ToFloat(Float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

C3PO_DEVICE BFloat16 ToBFloat16(float x) {
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

C3PO_DEVICE Float16 ToFloat16(float x) {
  Float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

C3PO_DEVICE uint32_t PackBFloat16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// sm_80 has no subtraction of pairs, but a fused multiply-add: a 1 - b.
C3PO_DEVICE uint32_t SubtractBFloat16Pairs(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
  return result;
}

// --- Programmatic dependent launch: of sm_90 and later. ---
C3PO_DEVICE void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

C3PO_DEVICE void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace c3po::device

#endif  // C3PO_INDEX_BASE_CUDA_DEVICE_NVCC_H_
