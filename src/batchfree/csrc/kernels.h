// What an instruction set offers to the driver in group_norm.cpp: row kernels over plain pointers.
//
// Each instruction set is one translation unit (kernels_*.cpp) that compiles the same templates
// with its own flags, in a namespace of its own, and returns one table per element type.
#pragma once

#include <cstdint>

namespace batchfree {

enum Activation : int { kNone, kRelu, kSilu, kGelu, kGeluTanh, kActivations };
enum ElementType : int { kFloat32, kBFloat16, kFloat16, kElementTypes };

// What a backward kernel adds to z = GN(x) before it takes the activation's derivative.
enum Aux : int {
  kNoAux,     // nothing
  kResidual,  // the residual
  kOutput,    // nothing: ReLU's derivative is read from the output y
  kAuxKinds
};

// Elements in a leaf of a sum, channels first. A leaf is summed in float32 lanes, leaves are summed
// in float64. Leaves depend on the shape of one sample alone, which is what makes the results the
// same to the bit for any batch and any number of threads.
constexpr int64_t kLeaf = 2048;
// Rows (positions) in a leaf, channels last.
constexpr int64_t kLeafRows = 128;

// Mean of a set of values and the sum of their squared distances from it.
struct Moments {
  double mean;
  double m2;
};

// One channel of one sample: xh = (x - mean) * rstd + shift; z = xh * gamma + beta, computed as
// (x - mean) * scale + offset. `shift` makes up for rounding the mean to float32.
struct Channel {
  float mean, scale, offset;
};

// dx = scale * dz - a - (x - mean) * b; see group_norm.cpp.
struct ChannelGradient {
  float scale, a, b;
};

// The same for all channels of a sample, channels last: arrays of C floats.
struct Channels {
  const float *mean, *scale, *offset;
};
struct ChannelGradients {
  const float *scale, *a, *b;
};

// Of one leaf, channels last: arrays of c floats. s1 and s2 are the sums of the distances from shift
// and of their squares.
struct LeafSums {
  float *shift, *s1, *s2;
};

// Pointers to elements are void*: their type is the table's. past_caches: write with streaming
// stores, which do not read the line they write; the caller fences.
struct Kernels {
  // Channels first: n contiguous elements.
  Moments (*moments)(const void* x, int64_t n);
  void (*apply[kActivations][2])(const void* x, const void* residual, void* y, int64_t n,
                                 Channel channel, bool past_caches);
  // sums[0] = sum dz, sums[1] = sum dz * (x - mean); writes dz where it is not null.
  void (*backward_sums[kActivations][kAuxKinds])(const void* x, const void* dy, const void* aux,
                                                 void* dz, int64_t n, Channel channel,
                                                 float* sums);
  void (*backward_input[kActivations][kAuxKinds])(const void* x, const void* dy, const void* aux,
                                                  void* dx, int64_t n, Channel channel,
                                                  ChannelGradient gradient, bool past_caches);

  // Channels last: `rows` rows of `c` contiguous elements; one result per channel.
  void (*rows_moments)(const void* x, int64_t rows, int64_t c, LeafSums out);
  // Joins the leaves of `rows` rows in all, (leaves, 3, c), into mean and m2 of each channel.
  void (*rows_join)(const float* sums, int64_t leaves, int64_t rows, int64_t c, double* mean,
                    double* m2);
  void (*rows_apply[kActivations][2])(const void* x, const void* residual, void* y, int64_t rows,
                                      int64_t c, Channels channels, bool past_caches);
  void (*rows_backward_sums[kActivations][kAuxKinds])(const void* x, const void* dy,
                                                      const void* aux, void* dz, int64_t rows,
                                                      int64_t c, Channels channels, float* sum_dz,
                                                      float* sum_dz_xc);
  void (*rows_backward_input[kActivations][kAuxKinds])(const void* x, const void* dy,
                                                       const void* aux, void* dx, int64_t rows,
                                                       int64_t c, Channels channels,
                                                       ChannelGradients gradients,
                                                       bool past_caches);
};

// Null where this build or this processor lacks the instruction set.
const Kernels* kernels_baseline(ElementType type);
const Kernels* kernels_avx2(ElementType type);
const Kernels* kernels_avx512(ElementType type);

}  // namespace batchfree
