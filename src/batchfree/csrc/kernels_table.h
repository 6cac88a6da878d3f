// The table of one instruction set; included by each kernels_*.cpp after it has named its namespace
// and its number of lanes. Includes nothing of the standard library: an inline function of it,
// compiled here with AVX, could be the copy that the linker keeps for everyone.
#pragma once

#include "channels_last.h"

namespace batchfree {
namespace BATCHFREE_NAMESPACE {

template <class E, Activation kAct>
void fill_activation(Kernels& t) {
  t.apply[kAct][0] = apply<E, kAct, false>;
  t.apply[kAct][1] = apply<E, kAct, true>;
  t.rows_apply[kAct][0] = rows_apply<E, kAct, false>;
  t.rows_apply[kAct][1] = rows_apply<E, kAct, true>;
  t.backward_sums[kAct][kNoAux] = backward_sums<E, kAct, kNoAux>;
  t.backward_input[kAct][kNoAux] = backward_input<E, kAct, kNoAux>;
  t.rows_backward_sums[kAct][kNoAux] = rows_backward_sums<E, kAct, kNoAux>;
  t.rows_backward_input[kAct][kNoAux] = rows_backward_input<E, kAct, kNoAux>;
  if constexpr (kAct != kNone) {
    t.backward_sums[kAct][kResidual] = backward_sums<E, kAct, kResidual>;
    t.backward_input[kAct][kResidual] = backward_input<E, kAct, kResidual>;
    t.rows_backward_sums[kAct][kResidual] = rows_backward_sums<E, kAct, kResidual>;
    t.rows_backward_input[kAct][kResidual] = rows_backward_input<E, kAct, kResidual>;
  }
  if constexpr (kAct == kRelu) {
    t.backward_sums[kAct][kOutput] = backward_sums<E, kAct, kOutput>;
    t.backward_input[kAct][kOutput] = backward_input<E, kAct, kOutput>;
    t.rows_backward_sums[kAct][kOutput] = rows_backward_sums<E, kAct, kOutput>;
    t.rows_backward_input[kAct][kOutput] = rows_backward_input<E, kAct, kOutput>;
  }
}

template <class E>
Kernels table() {
  Kernels t{};
  t.moments = moments<E>;
  t.rows_moments = rows_moments<E>;
  t.rows_join = rows_join;
  fill_activation<E, kNone>(t);
  fill_activation<E, kRelu>(t);
  fill_activation<E, kSilu>(t);
  fill_activation<E, kGelu>(t);
  fill_activation<E, kGeluTanh>(t);
  return t;
}

static const Kernels* kernels(ElementType type) {
  static const Kernels tables[kElementTypes] = {table<float>(), table<bf16>(), table<f16>()};
  return &tables[type];
}

}  // namespace BATCHFREE_NAMESPACE
}  // namespace batchfree
