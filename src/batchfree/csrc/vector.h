// A vector of kLanes float32 values, and how to read and write it as each element type.
//
// Written with the compiler's vector extension, so one source serves SSE2, NEON, AVX2 and AVX-512;
// intrinsics stand only where the extension has no word for an instruction. Rounding is the same in
// every lane and on every path: products are added by fma() and nowhere else (-ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

constexpr int kLanes = BATCHFREE_LANES;
typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));
typedef double vd __attribute__((vector_size(kLanes * 8)));

#define BF_INLINE static inline __attribute__((always_inline))

// Element types are distinct from uint16_t only by name.
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

BF_INLINE vf splat(float a) { return a - vf{}; }
BF_INLINE vf as_float(vi a) { return (vf)a; }
BF_INLINE vi as_int(vf a) { return (vi)a; }

BF_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__) && BATCHFREE_LANES == 16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && BATCHFREE_LANES == 8
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

BF_INLINE vf fnma(vf a, vf b, vf c) { return fma(-a, b, c); }  // c - a*b

BF_INLINE vf absolute(vf a) { return as_float(as_int(a) & 0x7fffffff); }

// a within [-limit, limit]; NaN may come out as a number.
BF_INLINE vf clamp(vf a, float limit) {
#if defined(__AVX512F__) && BATCHFREE_LANES == 16
  __m512 low = _mm512_max_ps((__m512)a, _mm512_set1_ps(-limit));
  return (vf)_mm512_min_ps(low, _mm512_set1_ps(limit));
#elif defined(__AVX__) && BATCHFREE_LANES == 8
  __m256 low = _mm256_max_ps((__m256)a, _mm256_set1_ps(-limit));
  return (vf)_mm256_min_ps(low, _mm256_set1_ps(limit));
#else
  a = a > splat(-limit) ? a : splat(-limit);
  return a < splat(limit) ? a : splat(limit);
#endif
}

// The sum of all lanes, halves added to halves.
BF_INLINE float sum(vf v) {
  float lanes[kLanes];
  memcpy(lanes, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

BF_INLINE vf widen(vh h, bf16) {
#if defined(__AVX2__) && BATCHFREE_LANES == 8
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

// Rounds to nearest, ties to even. NaN is cut off, not rounded, which would carry into its exponent;
// every NaN that arithmetic returns has its highest fraction bit set, so it stays NaN.
BF_INLINE vh narrow(vf v, bf16) {
  vu bits = (vu)v;
  vu rounding = (0x7fffu + ((bits >> 16) & 1u)) & (vu)(vi)(v == v);
  vu rounded = (bits + rounding) >> 16;
#if defined(__AVX2__) && BATCHFREE_LANES == 8
  __m256i r = (__m256i)rounded;
  return (vh)_mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
#else
  return __builtin_convertvector(rounded, vh);
#endif
}

BF_INLINE vf widen(vh h, f16) {
#if defined(__AVX512F__) && BATCHFREE_LANES == 16
  return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__) && BATCHFREE_LANES == 8
  return (vf)_mm256_cvtph_ps((__m128i)h);
#else
  vu u = __builtin_convertvector(h, vu);
  vu sign = (u & 0x8000u) << 16;
  // Exponent and fraction moved into place are the value times 2^-112, subnormals included.
  vf magnitude = (vf)((u & 0x7fffu) << 13) * splat(0x1p112f);
  vi special = (u & 0x7c00u) == 0x7c00u;
  vu infinite = 0x7f800000u | ((u & 0x3ffu) << 13);
  return (vf)(sign | (vu)(special ? (vi)infinite : (vi)magnitude));
#endif
}

BF_INLINE vh narrow(vf v, f16) {
#if defined(__AVX512F__) && BATCHFREE_LANES == 16
  return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__) && BATCHFREE_LANES == 8
  return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  vu bits = (vu)v;
  vu sign = (bits >> 16) & 0x8000u;
  vu magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent and round to nearest even by integer addition.
  vu normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 lets the floating-point unit round at the right bit.
  vu subnormal = (vu)((vf)magnitude + splat(0.5f)) - 0x3f000000u;
  vi is_subnormal = (vi)(magnitude < (113u << 23));
  vi overflows = (vi)(magnitude >= 0x477ff000u);
  vi is_nan = (vi)(magnitude > 0x7f800000u);
  vi h = is_subnormal ? (vi)subnormal : (vi)normal;
  h = overflows ? (vi)(vu{} + 0x7c00u) : h;
  h = is_nan ? (vi)(vu{} + 0x7e00u) : h;
  return __builtin_convertvector((vu)h | sign, vh);
#endif
}

// Access to a full vector of elements in memory.
struct Full {
  BF_INLINE vf load(const float* p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  BF_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
  template <class H>
  BF_INLINE vf load(const H* p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return widen(h, H{});
  }
  template <class H>
  BF_INLINE void store(H* p, vf v) {
    vh h = narrow(v, H{});
    memcpy(p, &h, sizeof h);
  }
  BF_INLINE vf keep(vf v) { return v; }
  static constexpr int count() { return kLanes; }
};

// Access to the first n < kLanes elements: others read as zero and are not written.
struct Part {
  int n;
  int count() const { return n; }
  template <class E>
  inline vf load(const E* p) const {
    E buffer[kLanes] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return Full::load(buffer);
  }
  template <class E>
  inline void store(E* p, vf v) const {
    E buffer[kLanes];
    Full::store(buffer, v);
    for (int i = 0; i < n; ++i) p[i] = buffer[i];
  }
  // Zero in the lanes that hold no element.
  inline vf keep(vf v) const {
    vi lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return lane < n ? v : vf{};
  }
};

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
