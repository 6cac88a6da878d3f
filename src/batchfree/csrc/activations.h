// The activations in vector form: value, and derivative times the incoming gradient.
//
// kBits is the precision of the result: 24 for float32, 11 for float16, 8 for bfloat16. Where it is
// less than 24 the error is a small fraction of the rounding to come. Coefficients:
// tools/fit_vector_functions.py.
#pragma once

#include "vector.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

// Sum of c[i] x^i, as a polynomial in x^2 of pairs: half the latency of Horner's rule for one more
// multiplication. The chain of one vector bounds the loops below as much as their length does.
template <int kTerms>
BF_INLINE vf polynomial(const float (&c)[kTerms], vf x) {
  vf x2 = x * x;
  int i = kTerms - 1;
  vf value = splat(c[i]);
  if (kTerms % 2 == 0) {
    value = fma(value, x, splat(c[i - 1]));
    i -= 1;
  }
  for (; i > 0; i -= 2) value = fma(value, x2, fma(splat(c[i - 1]), x, splat(c[i - 2])));
  return value;
}

// 2^(a * scale) for products within [-126, 127]. Relative error 2e-7, 3e-6 or 1e-4.
template <int kBits>
BF_INLINE vf exp2_scaled(vf a, float scale) {
  const vf magic = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  vf t = fma(a, splat(scale), magic);
  vf f = fma(a, splat(scale), magic - t);  // the product less that integer
  vf p;
  if constexpr (kBits > 11) {
    constexpr float c[] = {1.0f, 0.6931469774f, 0.2402224176f, 0.05550734007f, 0.009671534033f,
                           0.001326469807f};
    p = polynomial(c, f);
  } else if constexpr (kBits > 8) {
    constexpr float c[] = {1.0f, 0.6931241754f, 0.2402409983f, 0.05590658424f, 0.009582836516f};
    p = polynomial(c, f);
  } else {
    constexpr float c[] = {1.0f, 0.693283038f, 0.242211755f, 0.05500872102f};
    p = polynomial(c, f);
  }
  return as_float(as_int(p) + (as_int(t) << 23));
}

constexpr float kLog2E = 1.44269504f;

// 1 + exp(-a); beyond the limit exp stays at its last value.
template <int kBits>
BF_INLINE vf sigmoid_denominator(vf a) {
  return exp2_scaled<kBits>(clamp(a, 87.0f), -kLog2E) + splat(1.0f);
}

// Phi(z), the normal distribution function, and its density. With t = exp(-z^2/2) and the scaled
// tail Q(a) = exp(a^2/2) (1 - Phi(a)): Phi(z) = t Q(-z) for z < 0 and 1 - t Q(z) otherwise. One
// exponential serves value and derivative, and the negative tail keeps its relative accuracy.
template <int kBits>
BF_INLINE vf normal_distribution(vf z, vf* density) {
  vf a = absolute(clamp(z, 13.0f));  // beyond, t is 1e-37
  vf t = exp2_scaled<kBits>(a * a, -0.5f * kLog2E);
  vf u, q;
  if constexpr (kBits > 11) {
    constexpr float c[] = {0.119629298f,   0.120753963f, 0.0999134475f, 0.128561786f,
                           -0.0536839649f, 0.206353873f, -0.157203304f, 0.0356748285f};
    u = splat(1.0f) / fma(a, splat(0.30f), splat(1.0f));
    q = polynomial(c, u);
  } else {
    constexpr float c[] = {0.151225124f, 0.157829592f, 0.0919793855f, 0.188876893f,
                           -0.0899285232f};
    u = splat(1.0f) / fma(a, splat(0.38f), splat(1.0f));
    q = polynomial(c, u);
  }
  *density = t * splat(0.3989422804f);
  vf tail = t * (q * u);
  return z < vf{} ? tail : splat(1.0f) - tail;
}

template <Activation, int kBits>
struct Function;

template <int kBits>
struct Function<kNone, kBits> {
  BF_INLINE vf value(vf z) { return z; }
  BF_INLINE vf gradient(vf, vf dy) { return dy; }
};

template <int kBits>
struct Function<kRelu, kBits> {
  // Written so that NaN passes, as in torch.
  BF_INLINE vf value(vf z) { return z < vf{} ? vf{} : z; }
  BF_INLINE vf gradient(vf z, vf dy) { return z <= vf{} ? vf{} : dy; }
};

template <int kBits>
struct Function<kSilu, kBits> {
  BF_INLINE vf value(vf z) { return z / sigmoid_denominator<kBits>(z); }
  BF_INLINE vf gradient(vf z, vf dy) {
    vf s = splat(1.0f) / sigmoid_denominator<kBits>(z);
    return dy * fma(fma(-s, s, s), z, s);  // s + z s (1 - s)
  }
};

template <int kBits>
struct Function<kGelu, kBits> {
  BF_INLINE vf value(vf z) {
    vf density;
    return z * normal_distribution<kBits>(z, &density);
  }
  BF_INLINE vf gradient(vf z, vf dy) {
    vf density;
    vf phi = normal_distribution<kBits>(z, &density);
    return dy * fma(z, density, phi);
  }
};

// 0.5 z (1 + tanh(u)) = z sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3).
template <int kBits>
struct Function<kGeluTanh, kBits> {
  static constexpr double kRoot = 1.5957691216057308;  // 2 sqrt(2 / pi)
  static constexpr float kScale = float(kRoot), kCube = float(kRoot * 0.044715);
  static constexpr float kThreeCube = float(3 * kRoot * 0.044715);
  BF_INLINE vf twice_u(vf z, vf square) {
    return z * fma(square, splat(kCube), splat(kScale));
  }
  BF_INLINE vf value(vf z) { return z / sigmoid_denominator<kBits>(twice_u(z, z * z)); }
  BF_INLINE vf gradient(vf z, vf dy) {
    vf square = z * z;
    vf s = splat(1.0f) / sigmoid_denominator<kBits>(twice_u(z, square));
    vf inner = z * fma(square, splat(kThreeCube), splat(kScale));
    return dy * fma(fma(-s, s, s), inner, s);
  }
};

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
