#ifndef C3PO_SERVER_COMPUTE_CPU_COMPILED_TARGETS_H_
#define C3PO_SERVER_COMPUTE_CPU_COMPILED_TARGETS_H_

// Included before any header of Highway. The kernels are not compiled for instruction sets whose vectors have no fixed
// length, as tiles are arrays of vectors, nor for those that give them nothing over the one below: their processors run
// SSE2 and AVX3.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_SSSE3 | HWY_AVX3_DL)

#endif  // C3PO_SERVER_COMPUTE_CPU_COMPILED_TARGETS_H_
