// Row kernels for channels-last memory: rows (positions) of c contiguous channels.
//
// Channels are taken in blocks of a few vectors whose sums and coefficients stay in registers while
// the rows go by.
#pragma once

#include "channels_first.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

constexpr int kBlock = 4;

// Calls body(access, channel, width) for every block of channels; width is the number of vectors,
// a constant of its type.
template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};

template <class Body>
BF_INLINE void for_each_block(int64_t c, Body body) {
  int64_t i = 0;
  for (; i + kBlock * kLanes <= c; i += kBlock * kLanes) body(Full{}, i, Width<kBlock>{});
  for (; i + kLanes <= c; i += kLanes) body(Full{}, i, Width<1>{});
  if (i < c) body(Part{int(c - i)}, i, Width<1>{});
}

template <class Access>
BF_INLINE void store_double(Access access, double* p, vd v) {
  double buffer[kLanes];
  memcpy(buffer, &v, sizeof v);
  memcpy(p, buffer, access.count() * sizeof *p);
}

// As `moments`, for each channel of one leaf.
template <class E>
void rows_moments(const void* data, int64_t rows, int64_t c, double* mean, double* m2) {
  const E* x = static_cast<const E*>(data);
  const int64_t few = (rows + 7) / 8;
  for_each_block(c, [&](auto access, int64_t channel, auto width) {
    constexpr int W = decltype(width)::value;
    vf shift[W] = {}, s1[W] = {}, s2[W] = {};
    for (int64_t row = 0; row < few; ++row)
      for (int k = 0; k < W; ++k) shift[k] += access.load(x + row * c + channel + k * kLanes);
    for (int k = 0; k < W; ++k) shift[k] *= splat(1.0f / float(few));
    for (int64_t row = 0; row < rows; ++row)
      for (int k = 0; k < W; ++k) {
        vf d = access.load(x + row * c + channel + k * kLanes) - shift[k];
        s1[k] += d;
        s2[k] = fma(d, d, s2[k]);
      }
    const double inverse = 1.0 / double(rows);
    for (int k = 0; k < W; ++k) {
      vd t1 = __builtin_convertvector(s1[k], vd), t2 = __builtin_convertvector(s2[k], vd);
      vd squares = t2 - t1 * t1 * inverse;
      squares = squares < vd{} ? vd{} : squares;
      store_double(access, mean + channel + k * kLanes,
                   __builtin_convertvector(shift[k], vd) + t1 * inverse);
      store_double(access, m2 + channel + k * kLanes, squares);
    }
  });
}

static void rows_join(double* mean, double* m2, int64_t leaves, int64_t rows, int64_t c) {
  if (leaves == 1) return;
  const double last = double(rows - (leaves - 1) * kLeafRows);
  // Blocks keep the running sums in the first-level cache.
  constexpr int64_t kWide = 64;
  for (int64_t begin = 0; begin < c; begin += kWide) {
    const int64_t n = c - begin < kWide ? c - begin : kWide;
    double joined[kWide] = {}, squares[kWide] = {};
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const double weight = leaf + 1 < leaves ? double(kLeafRows) : last;
      const double* p = mean + leaf * c + begin;
      for (int64_t i = 0; i < n; ++i) joined[i] += weight * p[i];
    }
    for (int64_t i = 0; i < n; ++i) joined[i] /= double(rows);
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const double weight = leaf + 1 < leaves ? double(kLeafRows) : last;
      const double *p = mean + leaf * c + begin, *q = m2 + leaf * c + begin;
      for (int64_t i = 0; i < n; ++i) {
        const double d = p[i] - joined[i];
        squares[i] += q[i] + weight * (d * d);
      }
    }
    memcpy(mean + begin, joined, n * sizeof *joined);
    memcpy(m2 + begin, squares, n * sizeof *squares);
  }
}

template <class E, Activation kAct, bool kHasResidual>
void rows_apply(const void* x_data, const void* residual_data, void* y_data, int64_t rows,
                int64_t c, Channels channels) {
  const E* x = static_cast<const E*>(x_data);
  const E* residual = static_cast<const E*>(residual_data);
  E* y = static_cast<E*>(y_data);
  for_each_block(c, [&](auto access, int64_t channel, auto width) {
    constexpr int W = decltype(width)::value;
    vf mean[W], scale[W], offset[W];
    for (int k = 0; k < W; ++k) {
      mean[k] = access.load(channels.mean + channel + k * kLanes);
      scale[k] = access.load(channels.scale + channel + k * kLanes);
      offset[k] = access.load(channels.offset + channel + k * kLanes);
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int k = 0; k < W; ++k) {
        const int64_t i = row * c + channel + k * kLanes;
        vf z = fma(access.load(x + i) - mean[k], scale[k], offset[k]);
        if constexpr (kHasResidual) z += access.load(residual + i);
        access.store(y + i, Function<kAct, kFineFor<E>>::value(z));
      }
  });
}

template <class E, Activation kAct, Aux kAux>
void rows_backward_sums(const void* x_data, const void* dy_data, const void* aux_data,
                        void* dz_data, int64_t rows, int64_t c, Channels channels, float* sum_dz,
                        float* sum_dz_xc) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dz_out = static_cast<E*>(dz_data);
  for_each_block(c, [&](auto access, int64_t channel, auto width) {
    constexpr int W = decltype(width)::value;
    vf s1[W] = {}, s2[W] = {};
    for (int64_t row = 0; row < rows; ++row)
      for (int k = 0; k < W; ++k) {
        const int64_t at = channel + k * kLanes, i = row * c + at;
        vf xc = access.load(x + i) - access.load(channels.mean + at);
        vf dz = gradient_before<E, kAct, kAux>(access, xc, access.load(channels.scale + at),
                                               access.load(channels.offset + at),
                                               access.load(dy + i), aux + i);
        if (dz_out) access.store(dz_out + i, dz);
        s1[k] += dz;
        s2[k] = fma(dz, xc, s2[k]);
      }
    for (int k = 0; k < W; ++k) {
      access.store(sum_dz + channel + k * kLanes, s1[k]);
      access.store(sum_dz_xc + channel + k * kLanes, s2[k]);
    }
  });
}

// dx may be dy or aux itself: each vector is read before it is written.
template <class E, Activation kAct, Aux kAux>
void rows_backward_input(const void* x_data, const void* dy_data, const void* aux_data,
                         void* dx_data, int64_t rows, int64_t c, Channels channels,
                         ChannelGradients g) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dx = static_cast<E*>(dx_data);
  for_each_block(c, [&](auto access, int64_t channel, auto width) {
    constexpr int W = decltype(width)::value;
    for (int64_t row = 0; row < rows; ++row)
      for (int k = 0; k < W; ++k) {
        const int64_t at = channel + k * kLanes, i = row * c + at;
        vf xc = access.load(x + i) - access.load(channels.mean + at);
        vf dz = gradient_before<E, kAct, kAux>(access, xc, access.load(channels.scale + at),
                                               access.load(channels.offset + at),
                                               access.load(dy + i), aux + i);
        vf rest = fnma(xc, access.load(g.b + at), -access.load(g.a + at));
        access.store(dx + i, fma(dz, access.load(g.scale + at), rest));
      }
  });
}

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
