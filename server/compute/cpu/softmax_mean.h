#ifndef C3PO_SERVER_COMPUTE_CPU_SOFTMAX_MEAN_H_
#define C3PO_SERVER_COMPUTE_CPU_SOFTMAX_MEAN_H_

#include "server/compute/cpu/matrix_products.h"

namespace c3po::cpu {

// A softmax over the rows of W [n, k], and the mean of these rows under it: what cross-entropy and its gradient need of
// an LM head, in one pass over it and without logits [m, n] in memory (as cut cross-entropy does, arXiv 2411.09009).
// With
//   l[m, n] = <x[m], W[n]> / divisor,    p[m, n] = exp(l[m, n] - tops[m]) / sums[m]
// tops [m] are the largest l of each row and
//   means[m, k] = sum_n p[m, n] W[n, k],    so that    d log p[m, y] / d x[m] = (W[y] - means[m]) / divisor.
// means: packed, or null where only tops and sums are wanted; these are the same either way. m, n, k at least 1; a row
// with a logit that is not a number gets numbers of no meaning. A row's results are bitwise the same whatever other
// rows are beside it and on any number of threads of one machine. Thread-safe; runs on ThreadPool::Shared(), checks
// nothing.
void SoftmaxMean(const RowsView& x, const WeightView& w, float divisor, float* tops, double* sums, float* means);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_SOFTMAX_MEAN_H_
