// Loops shared out over torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace batchfree {

// Elements that a thread should get at least; below, starting threads costs more than they save.
constexpr int64_t kGrain = 16384;

// f(i) for each i in [0, count); each costs about `elements`.
template <class F>
void parallel_each(int64_t count, int64_t elements, const F& f) {
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
#if defined(__SSE2__)
    _mm_sfence();  // streaming stores, before another thread reads
#endif
  };
  if (count <= 1 || count * elements <= kGrain) {
    range(0, count);
    return;
  }
  const int64_t grain = elements >= kGrain ? 1 : kGrain / (elements < 1 ? 1 : elements);
  torch::stable::parallel_for(0, count, grain, range);
}

// Whether `tasks` equal tasks keep all threads busy for at least four fifths of the time.
inline bool fills_threads(int64_t tasks) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t rounds = (tasks + threads - 1) / threads;
  return rounds * threads * 4 <= tasks * 5;
}

}  // namespace batchfree
