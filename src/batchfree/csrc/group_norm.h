// Group Normalization of plain buffers, in parallel: forward.cpp and backward.cpp.
//
//   xh = (x - mean) * rstd;  z = xh * gamma + beta + residual;  y = act(z)          (Wu & He, eq. 1-7)
//   dz = dy * act'(z);  dbeta = sum dz;  dgamma = sum dz * xh
//   dx = rstd * (gamma * dz - (S1 + xh * S2) / M),  S1 = sum gamma * dz,  S2 = sum gamma * dz * xh
//
// with the sums of S1, S2 over the M elements of a sample's group.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernels.h"
#include "parallel.h"

namespace batchfree {

struct Shape {
  int64_t n, c, positions, groups;
  bool channels_last;  // in memory, each sample is (positions, c) instead of (c, positions)
  ElementType type;

  int64_t element_size() const { return type == kFloat32 ? 4 : 2; }
  int64_t group_channels() const { return c / groups; }
  int64_t group_elements() const { return group_channels() * positions; }
  int64_t sample_elements() const { return c * positions; }
  // Bytes between the starts of two samples of a dense tensor.
  int64_t sample_bytes() const { return sample_elements() * element_size(); }
};

// Whether output is better written past the caches: so many tensors of this shape do not fit the
// last one, so that what is written first has left it before anybody reads it.
bool exceeds_caches(const Shape& shape, int64_t tensors);

// Samples of one layout at a distance of `stride` bytes; null where there is none.
struct Input {
  const char* data = nullptr;
  int64_t stride = 0;
  const char* sample(int64_t n) const { return data ? data + n * stride : nullptr; }
};

struct Output {
  char* data = nullptr;
  int64_t stride = 0;
  char* sample(int64_t n) const { return data ? data + n * stride : nullptr; }
};

// Of a group of a sample: mean and 1 / sqrt(variance + eps) in float32, and shift, what rounding the
// mean took from xh: xh = (x - mean) * rstd + shift.
struct Statistics {
  float *mean, *rstd, *shift;  // (n, groups) each
};

struct Parameters {
  const float *gamma, *beta;  // (c) each, in float32
};

inline Channel channel_of(const Statistics& s, int64_t group, float gamma, float beta) {
  return {s.mean[group], s.rstd[group] * gamma, beta + s.shift[group] * gamma};
}

void forward(const Shape& shape, const Kernels& kernels, Input x, Input residual, Parameters p,
             double eps, Activation activation, Output y, Statistics statistics);

struct ParameterGradients {
  double *gamma, *beta;  // (n, c) each: one row for each sample
};

// Writes dx and dz where their data is not null. Sample gradients of gamma and beta are always made.
void backward(const Shape& shape, const Kernels& kernels, Input dy, Input x, Input aux, Aux kind,
              Parameters p, Statistics statistics, Activation activation, Output dx, Output dz,
              ParameterGradients gradients);

// Uninitialised scratch memory.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
  return std::unique_ptr<T[]>(new T[n]);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace batchfree
