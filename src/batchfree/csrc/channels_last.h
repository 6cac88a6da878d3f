// Row kernels for channels-last memory: rows (positions) of c contiguous channels.
//
// A few rows at a time, and in them a block of channels at a time, whose sums and coefficients stay
// in registers. So memory is read as a few streams side by side, which prefetchers follow; a block
// over all rows would touch one line in every `c` elements.
#pragma once

#include "channels_first.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

constexpr int kBlock = 4;
constexpr int64_t kTileRows = 8;

// A block of W vectors of channels. bfloat16 comes in pairs of even and odd channels.
template <class E, int W>
struct Block {
  static constexpr bool kPairs = kBitsOf<E> == 8;
  static constexpr int kWidth = W;

  BF_INLINE vf load(const E* p, int k) {
    if constexpr (kPairs) {
      const E* pair = p + k / 2 * 2 * kLanes;
      return k % 2 ? Odd::load(pair) : Even::load(pair);
    } else {
      return Full::load(p + k * kLanes);
    }
  }
  // Values of the same channels in float32.
  BF_INLINE vf load_coefficient(const float* p, int k) {
    if constexpr (kPairs) {
      const float* pair = p + k / 2 * 2 * kLanes;
      return every_other(Full::load(pair), Full::load(pair + kLanes), k % 2);
    } else {
      return Full::load(p + k * kLanes);
    }
  }
  BF_INLINE void store_coefficient(float* p, const vf (&v)[W]) {
    for (int k = 0; k < W; k += 1 + kPairs) {
      if constexpr (kPairs) {
        Full::store(p + k * kLanes, alternate(v[k], v[k + 1], 0));
        Full::store(p + (k + 1) * kLanes, alternate(v[k], v[k + 1], 1));
      } else {
        Full::store(p + k * kLanes, v[k]);
      }
    }
  }
  template <bool kStream>
  BF_INLINE void store(E* p, const vf (&v)[W]) {
    const Memory<E, kStream> memory{p};
    for (int k = 0; k < W; k += 1 + kPairs) {
      if constexpr (kPairs) memory.step(k * kLanes, false, v[k], v[k + 1]);
      else memory.step(k * kLanes, false, v[k]);
    }
  }
};

// Up to one vector of channels, where no block fits.
struct Rest {
  static constexpr int kWidth = 1;
  Part part;
  template <class E>
  inline vf load(const E* p, int) const {
    return part.load(p);
  }
  inline vf load_coefficient(const float* p, int) const { return part.load(p); }
  inline void store_coefficient(float* p, const vf (&v)[1]) const { part.store(p, v[0]); }
  template <bool, class E>
  inline void store(E* p, const vf (&v)[1]) const {
    part.store(p, v[0]);
  }
};

// Calls body(block, first row, end of rows, first channel) for all tiles of rows and channels.
template <class E, class Body>
BF_INLINE void for_each_tile(int64_t rows, int64_t c, Body body) {
  constexpr int kSmall = Block<E, kBlock>::kPairs ? 2 : 1;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t end = row + kTileRows < rows ? row + kTileRows : rows;
    int64_t i = 0;
    for (; i + kBlock * kLanes <= c; i += kBlock * kLanes) body(Block<E, kBlock>{}, row, end, i);
    for (; i + kSmall * kLanes <= c; i += kSmall * kLanes) body(Block<E, kSmall>{}, row, end, i);
    for (; i < c; i += kLanes)
      body(Rest{Part{int(c - i < kLanes ? c - i : kLanes)}}, row, end, i);
  }
}

template <class B>
BF_INLINE void load_coefficients(B block, const float* p, vf (&v)[B::kWidth]) {
  for (int k = 0; k < B::kWidth; ++k) v[k] = block.load_coefficient(p, k);
}

// As `moments`, for each channel of one leaf: the sums about `shift` from which the join makes them.
template <class E>
void rows_moments(const void* data, int64_t rows, int64_t c, LeafSums out) {
  const E* x = static_cast<const E*>(data);
  const int64_t few = (rows + 7) / 8;
  memset(out.shift, 0, size_t(c) * sizeof(float));
  memset(out.s1, 0, size_t(c) * sizeof(float));
  memset(out.s2, 0, size_t(c) * sizeof(float));
  for_each_tile<E>(few, c, [&](auto block, int64_t row, int64_t end, int64_t channel) {
    vf head[block.kWidth];
    load_coefficients(block, out.shift + channel, head);
    for (; row < end; ++row)
      for (int k = 0; k < block.kWidth; ++k) head[k] += block.load(x + row * c + channel, k);
    block.store_coefficient(out.shift + channel, head);
  });
  for (int64_t i = 0; i < c; ++i) out.shift[i] *= 1.0f / float(few);
  for_each_tile<E>(rows, c, [&](auto block, int64_t row, int64_t end, int64_t channel) {
    vf shift[block.kWidth], s1[block.kWidth], s2[block.kWidth];
    load_coefficients(block, out.shift + channel, shift);
    load_coefficients(block, out.s1 + channel, s1);
    load_coefficients(block, out.s2 + channel, s2);
    for (; row < end; ++row)
      for (int k = 0; k < block.kWidth; ++k) {
        vf d = block.load(x + row * c + channel, k) - shift[k];
        s1[k] += d;
        s2[k] = fma(d, d, s2[k]);
      }
    block.store_coefficient(out.s1 + channel, s1);
    block.store_coefficient(out.s2 + channel, s2);
  });
}

// Plain loops over doubles, which the compiler turns into vectors.
static void rows_join(const float* sums, int64_t leaves, int64_t rows, int64_t c, double* mean,
                      double* m2) {
  constexpr int64_t kWide = 64;  // channels at once: their running sums stay in the first cache
  for (int64_t begin = 0; begin < c; begin += kWide) {
    const int64_t n = c - begin < kWide ? c - begin : kWide;
    double joined[kWide] = {}, squares[kWide] = {};
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const double weight =
          double(leaf + 1 < leaves ? kLeafRows : rows - (leaves - 1) * kLeafRows);
      const float* shift = sums + leaf * 3 * c + begin;
      const float* s1 = shift + c;
      for (int64_t i = 0; i < n; ++i) joined[i] += weight * double(shift[i]) + double(s1[i]);
    }
    for (int64_t i = 0; i < n; ++i) joined[i] /= double(rows);
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const double weight =
          double(leaf + 1 < leaves ? kLeafRows : rows - (leaves - 1) * kLeafRows);
      const double inverse = 1.0 / weight;
      const float* shift = sums + leaf * 3 * c + begin;
      const float *s1 = shift + c, *s2 = s1 + c;
      for (int64_t i = 0; i < n; ++i) {
        const double t = double(s1[i]), about_mean = double(s2[i]) - t * t * inverse;
        const double d = double(shift[i]) + t * inverse - joined[i];
        squares[i] += (about_mean < 0 ? 0 : about_mean) + weight * (d * d);
      }
    }
    memcpy(mean + begin, joined, size_t(n) * sizeof *joined);
    memcpy(m2 + begin, squares, size_t(n) * sizeof *squares);
  }
}

template <bool kStream, class E, Activation kAct, bool kHasResidual>
BF_INLINE void apply_tiles(const E* x, const E* residual, E* y, int64_t rows, int64_t c,
                           Channels channels) {
  for_each_tile<E>(rows, c, [&](auto block, int64_t row, int64_t end, int64_t channel) {
    constexpr int W = decltype(block)::kWidth;
    vf mean[W], scale[W], offset[W];
    load_coefficients(block, channels.mean + channel, mean);
    load_coefficients(block, channels.scale + channel, scale);
    load_coefficients(block, channels.offset + channel, offset);
    for (; row < end; ++row) {
      const int64_t at = row * c + channel;
      vf out[W];
      for (int k = 0; k < W; ++k) {
        vf z = fma(block.load(x + at, k) - mean[k], scale[k], offset[k]);
        if constexpr (kHasResidual) z += block.load(residual + at, k);
        out[k] = Function<kAct, kBitsOf<E>>::value(z);
      }
      block.template store<kStream>(y + at, out);
    }
  });
}

// Whether every row of c elements starts where a vector may be streamed to.
template <class E>
bool rows_aligned(const E* p, int64_t c) {
  return aligned(p) && (c * sizeof(E)) % sizeof(vf) == 0;
}

template <class E, Activation kAct, bool kHasResidual>
void rows_apply(const void* x_data, const void* residual_data, void* y_data, int64_t rows,
                int64_t c, Channels channels, bool past_caches) {
  const E* x = static_cast<const E*>(x_data);
  const E* residual = static_cast<const E*>(residual_data);
  E* y = static_cast<E*>(y_data);
  if (past_caches && rows_aligned(y, c))
    apply_tiles<true, E, kAct, kHasResidual>(x, residual, y, rows, c, channels);
  else
    apply_tiles<false, E, kAct, kHasResidual>(x, residual, y, rows, c, channels);
}

// dz of one vector, as gradient_before: `block.load` in place of `access.load`.
template <class E, Activation kAct, Aux kAux, class B>
BF_INLINE vf block_gradient(B block, int k, vf xc, vf scale, vf offset, vf dy, const E* aux) {
  struct Access {
    B block;
    int k;
    inline vf load(const E* p) const { return block.load(p, k); }
  };
  return gradient_before<E, kAct, kAux>(Access{block, k}, xc, scale, offset, dy, aux);
}

template <class E, Activation kAct, Aux kAux>
void rows_backward_sums(const void* x_data, const void* dy_data, const void* aux_data,
                        void* dz_data, int64_t rows, int64_t c, Channels channels, float* sum_dz,
                        float* sum_dz_xc) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dz_out = static_cast<E*>(dz_data);
  memset(sum_dz, 0, size_t(c) * sizeof(float));
  memset(sum_dz_xc, 0, size_t(c) * sizeof(float));
  for_each_tile<E>(rows, c, [&](auto block, int64_t row, int64_t end, int64_t channel) {
    constexpr int W = decltype(block)::kWidth;
    vf mean[W], s1[W], s2[W];
    load_coefficients(block, channels.mean + channel, mean);
    load_coefficients(block, sum_dz + channel, s1);
    load_coefficients(block, sum_dz_xc + channel, s2);
    for (; row < end; ++row) {
      const int64_t at = row * c + channel;
      vf dz[W];
      for (int k = 0; k < W; ++k) {
        vf xc = block.load(x + at, k) - mean[k];
        dz[k] = block_gradient<E, kAct, kAux>(
            block, k, xc, block.load_coefficient(channels.scale + channel, k),
            block.load_coefficient(channels.offset + channel, k), block.load(dy + at, k), aux + at);
        s1[k] += dz[k];
        s2[k] = fma(dz[k], xc, s2[k]);
      }
      if (dz_out) block.template store<false>(dz_out + at, dz);
    }
    block.store_coefficient(sum_dz + channel, s1);
    block.store_coefficient(sum_dz_xc + channel, s2);
  });
}

template <bool kStream, class E, Activation kAct, Aux kAux>
BF_INLINE void input_tiles(const E* x, const E* dy, const E* aux, E* dx, int64_t rows, int64_t c,
                           Channels channels, ChannelGradients g) {
  for_each_tile<E>(rows, c, [&](auto block, int64_t row, int64_t end, int64_t channel) {
    constexpr int W = decltype(block)::kWidth;
    vf mean[W], b[W], a[W];
    load_coefficients(block, channels.mean + channel, mean);
    load_coefficients(block, g.a + channel, a);
    load_coefficients(block, g.b + channel, b);
    for (; row < end; ++row) {
      const int64_t at = row * c + channel;
      vf out[W];
      for (int k = 0; k < W; ++k) {
        vf xc = block.load(x + at, k) - mean[k];
        vf dz = block_gradient<E, kAct, kAux>(
            block, k, xc, block.load_coefficient(channels.scale + channel, k),
            block.load_coefficient(channels.offset + channel, k), block.load(dy + at, k), aux + at);
        out[k] = fma(dz, block.load_coefficient(g.scale + channel, k), fnma(xc, b[k], -a[k]));
      }
      block.template store<kStream>(dx + at, out);
    }
  });
}

// dx may be dy itself: each vector is read before it is written.
template <class E, Activation kAct, Aux kAux>
void rows_backward_input(const void* x_data, const void* dy_data, const void* aux_data,
                         void* dx_data, int64_t rows, int64_t c, Channels channels,
                         ChannelGradients g, bool past_caches) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dx = static_cast<E*>(dx_data);
  if (past_caches && rows_aligned(dx, c))
    input_tiles<true, E, kAct, kAux>(x, dy, aux, dx, rows, c, channels, g);
  else
    input_tiles<false, E, kAct, kAux>(x, dy, aux, dx, rows, c, channels, g);
}

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
