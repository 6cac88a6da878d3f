// What every processor of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define BATCHFREE_NAMESPACE baseline
#define BATCHFREE_LANES 4
#include "kernels_table.h"

namespace batchfree {
const Kernels* kernels_baseline(ElementType type) { return baseline::kernels(type); }
}  // namespace batchfree
