// AVX-512 F, BW, DQ and VL: x86-64 servers since 2017.
#define BATCHFREE_NAMESPACE avx512
#define BATCHFREE_LANES 16
#include "kernels.h"
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "kernels_table.h"

namespace batchfree {
const Kernels* kernels_avx512(ElementType type) {
  const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return supported ? avx512::kernels(type) : nullptr;
}
}  // namespace batchfree
#else
namespace batchfree {
const Kernels* kernels_avx512(ElementType) { return nullptr; }
}  // namespace batchfree
#endif
