// AVX2 with FMA and F16C: x86-64 since 2013.
#define BATCHFREE_NAMESPACE avx2
#define BATCHFREE_LANES 8
#include "kernels.h"
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernels_table.h"

namespace batchfree {
const Kernels* kernels_avx2(ElementType type) {
  const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("f16c");
  return supported ? avx2::kernels(type) : nullptr;
}
}  // namespace batchfree
#else
namespace batchfree {
const Kernels* kernels_avx2(ElementType) { return nullptr; }
}  // namespace batchfree
#endif
