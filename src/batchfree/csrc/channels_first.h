// Row kernels for contiguous elements of one channel (or, for the moments, of one group).
#pragma once

#include "activations.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

// Of a float32, float16 or bfloat16 result.
template <class E>
constexpr int kBitsOf = 24;
template <>
constexpr int kBitsOf<f16> = 11;
template <>
constexpr int kBitsOf<bf16> = 8;

// Independent chains of additions, enough to hide the latency of one.
constexpr int kChains = 4;

// Where a loop leaves the values it computes.
struct Nowhere {
  BF_INLINE void one(int64_t, vf) {}
  BF_INLINE void pair(int64_t, vf, vf) {}
  template <class Access>
  BF_INLINE void part(Access, int64_t, vf) {}
};

template <class E, bool kStream>
struct Memory {
  E* p;
  inline void one(int64_t i, vf v) const {
    if constexpr (kStream && sizeof(E) == sizeof(float)) stream(p + i, v);
    else Full::store(p + i, v);
  }
  inline void pair(int64_t i, vf even, vf odd) const {
    vu v = interleave(even, odd);
    if constexpr (kStream) stream(p + i, v);
    else memcpy(p + i, &v, sizeof v);
  }
  inline void part(Part access, int64_t i, vf v) const { access.store(p + i, v); }
};

// Calls body(access, i, chain) for the vectors of n elements, kUnroll in a round, and hands on what
// it returns: bfloat16 in pairs of even and odd elements, then what is left over.
template <class E, int kUnroll, class Store, class Body>
BF_INLINE void for_each_vector(int64_t n, Store store, Body body) {
  constexpr bool kPairs = kBitsOf<E> == 8;
  static_assert(!kPairs || kUnroll % 2 == 0, "pairs");
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes)
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t at = i + k * kLanes;
      if constexpr (kPairs) {
        vf even = body(Even{}, at, k), odd = body(Odd{}, at, k + 1);
        store.pair(at, even, odd);
        ++k;
      } else {
        store.one(at, body(Full{}, at, k));
      }
    }
  for (; i + kLanes <= n; i += kLanes) {
    if constexpr (kPairs) {
      const Part all{kLanes};
      store.part(all, i, body(Full{}, i, 0));
    } else {
      store.one(i, body(Full{}, i, 0));
    }
  }
  if (i < n) {
    const Part rest{int(n - i)};
    store.part(rest, i, body(rest, i, 0));
  }
}

// Writes body(access, i, 0) for all i.
template <class E, class Body>
BF_INLINE void write_vectors(int64_t n, E* out, bool past_caches, Body body) {
  constexpr int kUnroll = kBitsOf<E> == 8 ? 2 : 1;
  if (past_caches && aligned(out))
    for_each_vector<E, kUnroll>(n, Memory<E, true>{out}, body);
  else
    for_each_vector<E, kUnroll>(n, Memory<E, false>{out}, body);
}

// Mean and sum of squared distances of one leaf, in one pass: distances are taken from the mean of
// the first eighth, `shift`. The mean of k of n values lies within sqrt(n / k) standard deviations of
// the mean of all, whatever the values are, so subtracting it costs at most three bits.
template <class E>
Moments moments(const void* data, int64_t n) {
  const E* x = static_cast<const E*>(data);
  const int64_t few = (n + 7) / 8;
  vf head[kChains] = {};
  for_each_vector<E, kChains>(few, Nowhere{}, [&](auto access, int64_t i, int k) {
    return head[k] += access.load(x + i);
  });
  const float shift = sum((head[0] + head[1]) + (head[2] + head[3])) / float(few);
  const vf v_shift = splat(shift);

  vf s1[kChains] = {}, s2[kChains] = {};
  for_each_vector<E, kChains>(n, Nowhere{}, [&](auto access, int64_t i, int k) {
    vf d = access.keep(access.load(x + i) - v_shift);
    s1[k] += d;
    s2[k] = fma(d, d, s2[k]);
    return d;
  });
  const double t1 = sum((s1[0] + s1[1]) + (s1[2] + s1[3]));
  const double t2 = sum((s2[0] + s2[1]) + (s2[2] + s2[3]));
  const double m2 = t2 - t1 * t1 / double(n);
  return {double(shift) + t1 / double(n), m2 < 0 ? 0 : m2};
}

template <class E, Activation kAct, bool kHasResidual>
void apply(const void* x_data, const void* residual_data, void* y_data, int64_t n, Channel c,
           bool past_caches) {
  const E* x = static_cast<const E*>(x_data);
  const E* residual = static_cast<const E*>(residual_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  write_vectors(n, static_cast<E*>(y_data), past_caches, [&](auto access, int64_t i, int) {
    vf z = fma(access.load(x + i) - mean, scale, offset);
    if constexpr (kHasResidual) z += access.load(residual + i);
    return Function<kAct, kBitsOf<E>>::value(z);
  });
}

// dz = dy * act'(z), where xc is x - mean and aux what its kind says.
template <class E, Activation kAct, Aux kAux, class Access>
BF_INLINE vf gradient_before(Access access, vf xc, vf scale, vf offset, vf dy, const E* aux) {
  if constexpr (kAct == kNone) return dy;
  if constexpr (kAux == kOutput) return access.load(aux) <= vf{} ? vf{} : dy;
  vf z = fma(xc, scale, offset);
  if constexpr (kAux == kResidual) z += access.load(aux);
  return Function<kAct, kBitsOf<E>>::gradient(z, dy);
}

template <class E, Activation kAct, Aux kAux>
void backward_sums(const void* x_data, const void* dy_data, const void* aux_data, void* dz_data,
                   int64_t n, Channel c, float* sums) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  vf s1[kChains] = {}, s2[kChains] = {};
  auto body = [&](auto access, int64_t i, int k) {
    vf xc = access.load(x + i) - mean;
    vf dz = gradient_before<E, kAct, kAux>(access, xc, scale, offset, access.load(dy + i), aux + i);
    s1[k] += access.keep(dz);
    s2[k] = fma(access.keep(dz), access.keep(xc), s2[k]);
    return dz;
  };
  if (dz_data)
    for_each_vector<E, kChains>(n, Memory<E, false>{static_cast<E*>(dz_data)}, body);
  else
    for_each_vector<E, kChains>(n, Nowhere{}, body);
  sums[0] = sum((s1[0] + s1[1]) + (s1[2] + s1[3]));
  sums[1] = sum((s2[0] + s2[1]) + (s2[2] + s2[3]));
}

// dx may be dy itself: each vector is read before it is written.
template <class E, Activation kAct, Aux kAux>
void backward_input(const void* x_data, const void* dy_data, const void* aux_data, void* dx_data,
                    int64_t n, Channel c, ChannelGradient g, bool past_caches) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  const vf g_scale = splat(g.scale), a = splat(g.a), b = splat(g.b);
  write_vectors(n, static_cast<E*>(dx_data), past_caches, [&](auto access, int64_t i, int) {
    vf xc = access.load(x + i) - mean;
    vf dz = gradient_before<E, kAct, kAux>(access, xc, scale, offset, access.load(dy + i), aux + i);
    return fma(dz, g_scale, fnma(xc, b, -a));
  });
}

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
