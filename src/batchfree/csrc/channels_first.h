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

// How a loop walks through elements: one vector at a time, or, where the type is bfloat16, two with
// its even and its odd elements.
template <class E>
constexpr int kStep = kBitsOf<E> == 8 ? 2 : 1;

// Where a loop leaves the values it computes.
struct Nowhere {
  template <class... V>
  BF_INLINE void step(int64_t, bool, V...) {}
  BF_INLINE void part(Part, int64_t, vf) {}
};

template <class E, bool kStream>
struct Memory {
  E* p;
  inline void step(int64_t i, bool overlaps, vf v) const {
    if constexpr (kStream && sizeof(E) == sizeof(float)) {
      if (!overlaps) return stream(p + i, v);
    }
    Full::store(p + i, v);
  }
  inline void step(int64_t i, bool overlaps, vf even, vf odd) const {
    vu v = interleave(even, odd);
    if constexpr (kStream) {
      if (!overlaps) return stream(p + i, v);
    }
    memcpy(p + i, &v, sizeof v);
  }
  inline void part(Part access, int64_t i, vf v) const { access.store(p + i, v); }
};

// Calls body(access, i, chain) for the vectors of n elements and stores what it returns. Where n is
// no multiple of a step, the last one overlaps the one before: its access keeps the elements that
// are new. It is computed first, so that the result may overwrite what the body reads.
template <class E, class Store, class Body>
BF_INLINE void for_each_vector(int64_t n, Store store, Body body) {
  constexpr int kWidth = kStep<E> * kLanes;
  if (n < kWidth) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const Part rest{int(n - i < kLanes ? n - i : kLanes)};
      store.part(rest, i, body(rest, i, 0));
    }
    return;
  }
  auto step = [&](auto one, auto even, auto odd, int64_t i, int k, auto write) {
    if constexpr (kStep<E> == 2) {
      const vf first = body(even, i, k), second = body(odd, i, k + 1);
      write(first, second);
    } else {
      write(body(one, i, k));
    }
  };
  auto full = [&](int64_t i, int k) {
    step(Full{}, Even{}, Odd{}, i, k, [&](auto... v) { store.step(i, false, v...); });
  };
  auto all_before = [&](int64_t end) {
    int64_t i = 0;
    for (; i + kChains * kLanes <= end; i += kChains * kLanes)
      for (int k = 0; k < kChains; k += kStep<E>) full(i + k * kLanes, k);
    for (; i + kWidth <= end; i += kWidth) full(i, 0);
  };
  if (const int left = int(n % kWidth)) {
    const int64_t i = n - kWidth;
    const int old = kWidth - left;
    step(Last<Full>{old}, Last<Even>{old}, Last<Odd>{old}, i, 0, [&](auto... v) {
      all_before(n);
      store.step(i, true, v...);
    });
  } else {
    all_before(n);
  }
}

// Writes body(access, i, 0) for all i.
template <class E, class Body>
BF_INLINE void write_vectors(int64_t n, E* out, bool past_caches, Body body) {
  if (past_caches && aligned(out))
    for_each_vector<E>(n, Memory<E, true>{out}, body);
  else
    for_each_vector<E>(n, Memory<E, false>{out}, body);
}

// Mean and sum of squared distances of one leaf, in one pass: distances are taken from the mean of
// the first eighth, `shift`. The mean of k of n values lies within sqrt(n / k) standard deviations of
// the mean of all, whatever the values are, so subtracting it costs at most three bits.
template <class E>
Moments moments(const void* data, int64_t n) {
  const E* x = static_cast<const E*>(data);
  const int64_t few = (n + 7) / 8;
  vf head[kChains] = {};
  for_each_vector<E>(few, Nowhere{}, [&](auto access, int64_t i, int k) {
    return head[k] += access.keep(access.load(x + i));
  });
  const float shift = sum((head[0] + head[1]) + (head[2] + head[3])) / float(few);
  const vf v_shift = splat(shift);

  vf s1[kChains] = {}, s2[kChains] = {};
  for_each_vector<E>(n, Nowhere{}, [&](auto access, int64_t i, int k) {
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
    for_each_vector<E>(n, Memory<E, false>{static_cast<E*>(dz_data)}, body);
  else
    for_each_vector<E>(n, Nowhere{}, body);
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
