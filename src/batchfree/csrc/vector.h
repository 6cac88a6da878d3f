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

// The upper half of the sum is v rounded to nearest, ties to even. NaN stays NaN: its lower half is
// zero here, since it comes from a bfloat16 or from the coefficients, whose NaN is the plain one.
BF_INLINE vu round_up(vf v) { return (vu)v + 0x7fffu + (((vu)v >> 16) & 1u); }

BF_INLINE vh narrow(vf v, bf16) {
  vu rounded = round_up(v) >> 16;
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

// How a kernel reads the vector at an address. Access to a full vector of elements:
struct Full {
  static constexpr int kFirst = 0, kEvery = 1;  // the element of lane i is kFirst + i * kEvery
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
};

// Every other element of 2 * kLanes bfloat16 values: taken apart and joined again by a shift and a
// mask, where neighbours would have to be shuffled across the vector.
struct Even {
  static constexpr int kFirst = 0, kEvery = 2;
  BF_INLINE vf load(const bf16* p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return (vf)(v << 16);
  }
  BF_INLINE vf keep(vf v) { return v; }
};

struct Odd {
  static constexpr int kFirst = 1, kEvery = 2;
  BF_INLINE vf load(const bf16* p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return (vf)(v & 0xffff0000u);
  }
  BF_INLINE vf keep(vf v) { return v; }
};

BF_INLINE vu interleave(vf even, vf odd) {
  vu low = round_up(even) >> 16, high = round_up(odd);
#if defined(__AVX2__) && BATCHFREE_LANES == 8
  return (vu)_mm256_blend_epi16((__m256i)low, (__m256i)high, 0xaa);
#else
  return low | (high & 0xffff0000u);
#endif
}

// Access to the first n < kLanes elements: others read as zero and are not written.
struct Part {
  int n;
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

// Access to the elements that another access reads, of which the first `old` are not kept.
template <class Access>
struct Last {
  int old;
  template <class E>
  inline vf load(const E* p) const {
    return Access::load(p);
  }
  inline vf keep(vf v) const {
    vi element;
    for (int i = 0; i < kLanes; ++i) element[i] = Access::kFirst + i * Access::kEvery;
    return element >= old ? v : vf{};
  }
};

// Lanes lane(0), lane(1), ... of a and b side by side; constant after inlining.
template <class Lane>
BF_INLINE vf shuffle(vf a, vf b, Lane lane) {
#if defined(__GNUC__) && !defined(__clang__)
  vi mask;
  for (int i = 0; i < kLanes; ++i) mask[i] = lane(i);
  return __builtin_shuffle(a, b, mask);
#else
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = lane(i) < kLanes ? a[lane(i)] : b[lane(i) - kLanes];
  return v;
#endif
}

// The even (which = 0) or odd (1) lanes of a and b; and the inverse, the first or second half of
// two vectors taken in turn.
BF_INLINE vf every_other(vf a, vf b, int which) {
  return shuffle(a, b, [=](int i) { return 2 * i + which; });
}

BF_INLINE vf alternate(vf even, vf odd, int half) {
  return shuffle(even, odd, [=](int i) { return i % 2 * kLanes + half * (kLanes / 2) + i / 2; });
}

// Writes past the caches, to an address that is a multiple of the vector's size.
template <class V>
BF_INLINE void stream(void* p, V v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, (V*)p);
#elif defined(__AVX512F__) && BATCHFREE_LANES == 16
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX__) && BATCHFREE_LANES == 8
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  memcpy(p, &v, sizeof v);
#endif
}

BF_INLINE bool aligned(const void* p) { return (uintptr_t)p % sizeof(vf) == 0; }

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
