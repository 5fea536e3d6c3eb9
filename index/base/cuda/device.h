#ifndef C3PO_INDEX_BASE_CUDA_DEVICE_H_
#define C3PO_INDEX_BASE_CUDA_DEVICE_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// The language of c3po's kernels. A .cu file includes this header, standard headers and the arguments of its own room,
// and compiles twice: by nvcc for a GPU (device_nvcc.h), and by g++ for the execution model of the tests
// (tests/host_cuda/device.h). What is declared here means the same on both.
//
//   struct ScaleArgs { float* x; int64_t n; float factor; };
//   C3PO_KERNEL void C3PO_BOUNDS(256, 2) Scale(ScaleArgs args) {
//     const int64_t i = int64_t{Block()} * Threads() + Thread();
//     if (i < args.n) args.x[i] = Multiply(args.x[i], args.factor);
//   }
//   Error LaunchScale(const ScaleArgs& args, Stream stream) {
//     return Launch(Scale, Grid{static_cast<int>((args.n + 255) / 256)}, 256, 0, stream, args);
//   }
//
// A kernel takes one trivially copyable struct by value. Kernel code has no mutable statics, no recursion, no `new`, no
// printf, no __shared__ variables, and no float atomics: floats are summed in a fixed order.
//
// Blocks are 1-D, of whole warps. A call marked "warp" or "block" is a collective: all 32 threads of the warp, or all
// threads of the block, make it at the same place of the source. Anything else is undefined on a GPU; the model of the
// tests reports a deadlock. A thread that has ended counts as missing.
#ifdef __CUDACC__
#define C3PO_KERNEL __global__
#define C3PO_BOUNDS(threads, blocks_per_multiprocessor) __launch_bounds__(threads, blocks_per_multiprocessor)
#define C3PO_DEVICE __device__ __forceinline__
#define C3PO_HOST_DEVICE __host__ __device__ __forceinline__
#define C3PO_UNROLL _Pragma("unroll")  // before a loop
#else
#include <source_location>
#define C3PO_KERNEL
#define C3PO_BOUNDS(threads, blocks_per_multiprocessor)
#define C3PO_DEVICE inline
#define C3PO_HOST_DEVICE inline
#define C3PO_UNROLL
#endif

namespace c3po::device {

using cuda::Error;
using cuda::Stream;

// Where in the source a collective is called: for the model's reports, nothing on a GPU. Never given by a caller.
#ifdef __CUDACC__
struct Place {
  C3PO_HOST_DEVICE static constexpr Place current() { return {}; }
};
#else
using Place = std::source_location;
#endif

struct Grid {
  int x = 1, y = 1, z = 1;  // Blocks; y and z at most 65,535.
};

struct alignas(16) Words4 {
  uint32_t x[4];
};

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;  // IEEE binary16
};

// --- Host side. ---
// Enqueues `kernel` on a grid of `threads` (a multiple of 32, at most 1,024) with `shared_bytes` of dynamic shared
// memory. Args are copied. Beyond 48 KiB of shared memory the kernel's limit is raised, once.
template <class Args>
Error Launch(void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream, const Args& args);

// The same for a kernel that may start before its predecessor in the stream has ended (programmatic dependent launch).
// Each of its threads calls WaitForPreviousKernel before it touches what the predecessor writes, or writes what it
// reads.
template <class Args>
Error LaunchEarly(void (*kernel)(Args), Grid grid, int threads, int shared_bytes, Stream stream, const Args& args);

// --- Where a thread is. ---
C3PO_DEVICE int Thread();   // in its block
C3PO_DEVICE int Threads();  // of a block
C3PO_DEVICE int Lane();     // in its warp: 0..31
C3PO_DEVICE int Warp();     // in its block
C3PO_DEVICE int Warps();    // of a block
C3PO_DEVICE int Block();
C3PO_DEVICE int Blocks();
C3PO_DEVICE int BlockY();
C3PO_DEVICE int BlocksY();
C3PO_DEVICE int BlockZ();
C3PO_DEVICE int BlocksZ();

// The block's dynamic shared memory, 128-byte aligned, of unknown content when the block starts.
C3PO_DEVICE void* SharedMemory();

// --- Collectives. ---
// What the group's threads wrote before is seen by all of them after.
C3PO_DEVICE void SyncBlock(Place place = Place::current());  // block
C3PO_DEVICE void SyncWarp(Place place = Place::current());   // warp

// Warp. T is trivially copyable, of 4 or 8 bytes. Returns `value` of another lane: of `from_lane` modulo 32; of this
// lane xor `mask` (0..31); of the lane `delta` (0..31) above or below, or this lane's own where there is none.
template <class T>
C3PO_DEVICE T Shuffle(T value, int from_lane, Place place = Place::current());
template <class T>
C3PO_DEVICE T ShuffleXor(T value, int mask, Place place = Place::current());
template <class T>
C3PO_DEVICE T ShuffleDown(T value, int delta, Place place = Place::current());
template <class T>
C3PO_DEVICE T ShuffleUp(T value, int delta, Place place = Place::current());

// Warp. Bit i of Ballot is lane i's.
C3PO_DEVICE uint32_t Ballot(bool predicate, Place place = Place::current());
C3PO_DEVICE bool Any(bool predicate, Place place = Place::current());
C3PO_DEVICE bool All(bool predicate, Place place = Place::current());

// Warp. D[16, 8] += A[16, 16] B[16, 8] by tensor cores: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. A word
// holds two bfloat16, the lower column (A) or row (B) in its low half. With g = lane / 4 and t = lane % 4 a lane has
//   a[0], a[1]: A[g and g + 8][2t, 2t+1]        a[2], a[3]: A[g and g + 8][2t+8, 2t+9]
//   b[0]: B[2t, 2t+1][g]   b[1]: B[2t+8, 2t+9][g]
//   d[0], d[1]: D[g][2t, 2t+1]                  d[2], d[3]: D[g + 8][2t, 2t+1]
// Products are exact; how their sum is rounded is the GPU's own (the model rounds once).
C3PO_DEVICE void MultiplyAdd16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    Place place = Place::current());

// Warp. Transposes an 8 x 8 matrix of 16-bit elements (movmatrix.trans): a lane gives and gets [g][2t, 2t+1], as above.
C3PO_DEVICE uint32_t Transpose8x8(uint32_t tile, Place place = Place::current());

// Warp. Four 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix.x4): lane i gives the address of row i % 8
// of matrix i / 8, 16 bytes, 16-byte aligned; r[j] is [g][2t, 2t+1] of matrix j.
C3PO_DEVICE void LoadMatrices4(uint32_t (&r)[4], const void* shared_row, Place place = Place::current());

// --- Copies from global to shared memory that run beside the thread (cp.async), of 16 bytes or of kBytes: 4, 8 or 16.
// --- Both ends are aligned to as many.
// --- The target's content is unknown from the copy on until the thread has waited for its group; other threads see it
// after a SyncBlock or SyncWarp behind that. OrZero: where not `valid`, zeros are written and nothing is read.
C3PO_DEVICE void CopyAsync16(void* shared, const void* global);
C3PO_DEVICE void CopyAsyncOrZero16(void* shared, const void* global, bool valid);
template <int kBytes>
C3PO_DEVICE void CopyAsyncOrZero(void* shared, const void* global, bool valid);
C3PO_DEVICE void CommitCopies();  // What the thread copied since its last call is one group, maybe an empty one.
template <int kGroupsLeft>
C3PO_DEVICE void WaitCopies();  // until at most kGroupsLeft of the thread's newest groups are under way

// Global memory that is read once, by one thread, and that this kernel does not write: it leaves no trace in L1.
C3PO_DEVICE Words4 LoadOnce(const Words4* global);

// --- Atomics on global or shared memory: relaxed, in any order. They return the old value. ---
C3PO_DEVICE int AtomicAdd(int* to, int value);
C3PO_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t value);
C3PO_DEVICE uint64_t AtomicAdd(uint64_t* to, uint64_t value);
C3PO_DEVICE int AtomicMax(int* to, int value);
C3PO_DEVICE uint32_t AtomicMax(uint32_t* to, uint32_t value);
C3PO_DEVICE uint64_t AtomicMax(uint64_t* to, uint64_t value);
C3PO_DEVICE int AtomicMin(int* to, int value);
C3PO_DEVICE uint32_t AtomicMin(uint32_t* to, uint32_t value);
C3PO_DEVICE uint64_t AtomicMin(uint64_t* to, uint64_t value);
C3PO_DEVICE uint32_t AtomicOr(uint32_t* to, uint32_t bits);
C3PO_DEVICE uint32_t AtomicAnd(uint32_t* to, uint32_t bits);
C3PO_DEVICE int AtomicExchange(int* to, int value);
C3PO_DEVICE uint32_t AtomicExchange(uint32_t* to, uint32_t value);
C3PO_DEVICE uint64_t AtomicExchange(uint64_t* to, uint64_t value);
C3PO_DEVICE uint32_t AtomicCompareExchange(uint32_t* to, uint32_t expected, uint32_t value);
C3PO_DEVICE uint64_t AtomicCompareExchange(uint64_t* to, uint64_t expected, uint64_t value);
C3PO_DEVICE void
ThreadFence();  // What the thread wrote before is seen, by the whole device, before what it writes after.

// --- Arithmetic. Fused into nothing else, rounded to nearest even. ---
C3PO_DEVICE float Add(float a, float b);
C3PO_DEVICE float Subtract(float a, float b);
C3PO_DEVICE float Multiply(float a, float b);
C3PO_DEVICE float Divide(float a, float b);
C3PO_DEVICE float SquareRoot(float x);
C3PO_DEVICE float FusedMultiplyAdd(float a, float b, float c);  // a b + c, rounded once
// Within 2 ulp of the true value, so not bitwise the same on every machine.
C3PO_DEVICE float Exp(float x);
C3PO_DEVICE float Log(float x);
C3PO_DEVICE float Rsqrt(float x);
C3PO_DEVICE float Sin(float x);
C3PO_DEVICE float Cos(float x);

// --- Bits and small floats. To*: nearest even; NaN becomes a NaN. ---
C3PO_DEVICE int CountBits(uint32_t bits);
C3PO_DEVICE int LowestBit(uint32_t bits);  // 0..31; bits is not 0
C3PO_DEVICE uint32_t BitsOf(float x);
C3PO_DEVICE float FloatOf(uint32_t bits);
C3PO_DEVICE float ToFloat(BFloat16 x);
C3PO_DEVICE float ToFloat(Float16 x);
C3PO_DEVICE BFloat16 ToBFloat16(float x);
C3PO_DEVICE Float16 ToFloat16(float x);
C3PO_DEVICE uint32_t PackBFloat16(float low, float high);  // two of them in a word
// a - b of the bfloat16 in the low halves, and of those in the high ones; each rounded once.
C3PO_DEVICE uint32_t SubtractBFloat16Pairs(uint32_t a, uint32_t b);

// --- Programmatic dependent launch (LaunchEarly). ---
C3PO_DEVICE void WaitForPreviousKernel();  // The kernel before has ended, and what it wrote is seen.
C3PO_DEVICE void LetNextKernelStart();     // once all threads of all blocks called it or ended

}  // namespace c3po::device

#ifdef __CUDACC__
#include "index/base/cuda/device_nvcc.h"
#else
#include "tests/host_cuda/device.h"
#endif

#endif  // C3PO_INDEX_BASE_CUDA_DEVICE_H_
