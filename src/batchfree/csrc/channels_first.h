// Row kernels for contiguous elements of one channel (or, for the moments, of one group).
#pragma once

#include "activations.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

template <class E>
constexpr bool kFineFor = sizeof(E) == 4;

// Calls body(access, i) for every vector of n elements: full ones, then what is left over.
template <class Body>
BF_INLINE void for_each_vector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(Full{}, i);
  if (i < n) body(Part{int(n - i)}, i);
}

// Independent chains of additions, enough to hide the latency of one.
constexpr int kChains = 4;

// Mean and sum of squared distances of one leaf, in one pass: distances are taken from the mean of
// the first eighth, `shift`. The mean of k of n values lies within sqrt(n / k) standard deviations of
// the mean of all, whatever the values are, so subtracting it costs at most three bits.
template <class E>
Moments moments(const void* data, int64_t n) {
  const E* x = static_cast<const E*>(data);
  const int64_t few = (n + 7) / 8;
  vf head{};
  for_each_vector(few, [&](auto access, int64_t i) { head += access.load(x + i); });
  const float shift = sum(head) / float(few);
  const vf v_shift = splat(shift);

  vf s1[kChains] = {}, s2[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
    for (int k = 0; k < kChains; ++k) {
      vf d = Full::load(x + i + k * kLanes) - v_shift;
      s1[k] += d;
      s2[k] = fma(d, d, s2[k]);
    }
  for_each_vector(n - i, [&](auto access, int64_t j) {
    vf d = access.keep(access.load(x + i + j) - v_shift);
    s1[0] += d;
    s2[0] = fma(d, d, s2[0]);
  });
  const double t1 = sum((s1[0] + s1[1]) + (s1[2] + s1[3]));
  const double t2 = sum((s2[0] + s2[1]) + (s2[2] + s2[3]));
  const double m2 = t2 - t1 * t1 / double(n);
  return {double(shift) + t1 / double(n), m2 < 0 ? 0 : m2};
}

template <class E, Activation kAct, bool kHasResidual>
void apply(const void* x_data, const void* residual_data, void* y_data, int64_t n, Channel c) {
  const E* x = static_cast<const E*>(x_data);
  const E* residual = static_cast<const E*>(residual_data);
  E* y = static_cast<E*>(y_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  for_each_vector(n, [&](auto access, int64_t i) {
    vf z = fma(access.load(x + i) - mean, scale, offset);
    if constexpr (kHasResidual) z += access.load(residual + i);
    access.store(y + i, Function<kAct, kFineFor<E>>::value(z));
  });
}

// dz = dy * act'(z), where xc is x - mean and aux what its kind says.
template <class E, Activation kAct, Aux kAux, class Access>
BF_INLINE vf gradient_before(Access access, vf xc, vf scale, vf offset, vf dy, const E* aux) {
  if constexpr (kAct == kNone) return dy;
  if constexpr (kAux == kOutput) return access.load(aux) <= vf{} ? vf{} : dy;
  vf z = fma(xc, scale, offset);
  if constexpr (kAux == kResidual) z += access.load(aux);
  return Function<kAct, kFineFor<E>>::gradient(z, dy);
}

template <class E, Activation kAct, Aux kAux>
void backward_sums(const void* x_data, const void* dy_data, const void* aux_data, void* dz_data,
                   int64_t n, Channel c, float* sums) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dz_out = static_cast<E*>(dz_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  vf s1[kChains] = {}, s2[kChains] = {};
  auto body = [&](auto access, int64_t i, int k) {
    vf xc = access.load(x + i) - mean;
    vf dz = gradient_before<E, kAct, kAux>(access, xc, scale, offset, access.load(dy + i), aux + i);
    if (dz_out) access.store(dz_out + i, dz);
    s1[k] += access.keep(dz);
    s2[k] = fma(access.keep(dz), access.keep(xc), s2[k]);
  };
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
    for (int k = 0; k < kChains; ++k) body(Full{}, i + k * kLanes, k);
  for_each_vector(n - i, [&](auto access, int64_t j) { body(access, i + j, 0); });
  sums[0] = sum((s1[0] + s1[1]) + (s1[2] + s1[3]));
  sums[1] = sum((s2[0] + s2[1]) + (s2[2] + s2[3]));
}

// dx may be dy or aux itself: each vector is read before it is written.
template <class E, Activation kAct, Aux kAux>
void backward_input(const void* x_data, const void* dy_data, const void* aux_data, void* dx_data,
                    int64_t n, Channel c, ChannelGradient g) {
  const E* x = static_cast<const E*>(x_data);
  const E* dy = static_cast<const E*>(dy_data);
  const E* aux = static_cast<const E*>(aux_data);
  E* dx = static_cast<E*>(dx_data);
  const vf mean = splat(c.mean), scale = splat(c.scale), offset = splat(c.offset);
  const vf g_scale = splat(g.scale), a = splat(g.a), b = splat(g.b);
  for_each_vector(n, [&](auto access, int64_t i) {
    vf xc = access.load(x + i) - mean;
    vf dz = gradient_before<E, kAct, kAux>(access, xc, scale, offset, access.load(dy + i), aux + i);
    access.store(dx + i, fma(dz, g_scale, fnma(xc, b, -a)));
  });
}

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
