// The operators batchfree::group_norm and batchfree::group_norm_backward for the CPU. Their schemas
// are defined in ops/fused.py.
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "tensors.h"

namespace batchfree {
namespace {

// The best instruction set of this processor, or the one that BATCHFREE_CPU_CAPABILITY names.
// Codes as in ops/cpu.py.
enum Capability : int64_t { kBaseline, kAvx2, kAvx512, kUnknown, kUnsupported };

const Kernels* kernels_of(int64_t capability, ElementType type) {
  switch (capability) {
    case kAvx512: return kernels_avx512(type);
    case kAvx2: return kernels_avx2(type);
    default: return kernels_baseline(type);
  }
}

Capability find_capability() {
  const char* forced = std::getenv("BATCHFREE_CPU_CAPABILITY");
  if (!forced || !*forced) {
    if (kernels_avx512(kFloat32)) return kAvx512;
    return kernels_avx2(kFloat32) ? kAvx2 : kBaseline;
  }
  const char* names[] = {"baseline", "avx2", "avx512"};
  for (int64_t i = 0; i < 3; ++i)
    if (!std::strcmp(forced, names[i]))
      return kernels_of(i, kFloat32) ? Capability(i) : kUnsupported;
  return kUnknown;
}

int64_t cpu_capability() {
  static const Capability capability = find_capability();
  return capability;
}

const Kernels& kernels(ElementType type) {
  const int64_t capability = cpu_capability();
  STD_TORCH_CHECK(capability < kUnknown, "BATCHFREE_CPU_CAPABILITY must be one of baseline, avx2, ",
                  "avx512, and an instruction set of this processor; got ",
                  std::getenv("BATCHFREE_CPU_CAPABILITY"));
  return *kernels_of(capability, type);
}

Statistics statistics_of(const Tensor& t, const Shape& shape) {
  float* p = static_cast<float*>(t.mutable_data_ptr());
  const int64_t n = shape.n * shape.groups;
  return {p, p + n, p + 2 * n};
}

struct LaidOut {
  Tensor x;
  bool channels_last;  // of the tensors; shape.channels_last is the order the kernels walk
};

LaidOut lay_out(const Tensor& x, Shape* shape) {
  const bool first = samples_dense(x, false);
  const bool last = !first && (x.dim() == 4 || x.dim() == 5) && samples_dense(x, true);
  // One position: a sample is a row of channels, which the channels-last kernels take as vectors.
  shape->channels_last = last || shape->positions == 1;
  return {first || last ? x : laid_out(x, false), last};
}

std::tuple<Tensor, Tensor> group_norm(const Tensor& x_given, const std::optional<Tensor>& weight,
                                      const std::optional<Tensor>& bias,
                                      const std::optional<Tensor>& residual, int64_t num_groups,
                                      double eps, int64_t activation) {
  Shape shape = check_input(x_given, num_groups, activation);
  STD_TORCH_CHECK(eps - eps == 0, "batchfree::group_norm: eps must be finite");
  if (residual) check_like("residual", *residual, x_given);
  const ChannelValues gamma("weight", weight, x_given, 1), beta("bias", bias, x_given, 0);
  const auto& [x, channels_last] = lay_out(x_given, &shape);

  Tensor y = new_like(x, channels_last);
  Tensor statistics = new_contiguous({3, shape.n, num_groups}, ScalarType::Float);
  if (shape.n == 0) return {y, statistics};
  const int64_t size = shape.element_size();
  const Tensor r = residual ? laid_out(*residual, channels_last) : x;
  forward(shape, kernels(shape.type), input(x, size), residual ? input(r, size) : Input{},
          {gamma.data(), beta.data()}, eps, Activation(activation), output(y, shape),
          statistics_of(statistics, shape));
  return {y, statistics};
}

// Sums each of `splits` runs of samples, in the order of the samples.
template <class E>
void sum_samples(const double* per_sample, int64_t n, int64_t c, int64_t splits, E* out) {
  const int64_t run = n / splits;
  parallel_each(splits, run * c, [&](int64_t s) {
    std::vector<double> total(size_t(c), 0.0);
    for (int64_t i = s * run; i < (s + 1) * run; ++i)
      for (int64_t k = 0; k < c; ++k) total[size_t(k)] += per_sample[i * c + k];
    for (int64_t k = 0; k < c; ++k) out[s * c + k] = E(float(total[size_t(k)]));
  });
}

Tensor parameter_gradient(const double* per_sample, const Shape& shape, int64_t splits,
                          ScalarType type) {
  Tensor out = splits ? new_contiguous({splits, shape.c}, type) : new_contiguous({shape.c}, type);
  if (splits == 0) splits = 1;
  void* p = out.mutable_data_ptr();
  switch (type) {
    case ScalarType::Float:
      sum_samples(per_sample, shape.n, shape.c, splits, static_cast<float*>(p));
      break;
    case ScalarType::BFloat16:
      sum_samples(per_sample, shape.n, shape.c, splits, static_cast<c10::BFloat16*>(p));
      break;
    default: sum_samples(per_sample, shape.n, shape.c, splits, static_cast<c10::Half*>(p));
  }
  return out;
}

enum Wanted : int64_t { kWantInput = 1, kWantResidual = 2, kWantWeight = 4, kWantBias = 8 };

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_backward(
    const Tensor& dy_given, const Tensor& x_given, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    const std::optional<Tensor>& y, const Tensor& statistics, int64_t num_groups,
    int64_t activation, int64_t splits, int64_t wanted) {
  Shape shape = check_input(x_given, num_groups, activation);
  check_like("dy", dy_given, x_given);
  if (residual) check_like("residual", *residual, x_given);
  if (y) check_like("y", *y, x_given);
  STD_TORCH_CHECK(!y || activation == kRelu,
                  "batchfree::group_norm_backward: y serves for ReLU only");
  STD_TORCH_CHECK(statistics.is_cpu() && statistics.scalar_type() == ScalarType::Float &&
                      statistics.is_contiguous() &&
                      statistics.numel() == 3 * shape.n * num_groups,
                  "batchfree::group_norm_backward: statistics must be what group_norm returned");
  STD_TORCH_CHECK(splits == 0 || (splits > 0 && shape.n % splits == 0), "batchfree::group_norm_backward: ", splits,
                  " splits do not divide ", shape.n, " samples");
  const ChannelValues gamma("weight", weight, x_given, 1), beta("bias", bias, x_given, 0);
  const auto& [x, channels_last] = lay_out(x_given, &shape);
  const Tensor dy = laid_out(dy_given, channels_last);

  const int64_t size = shape.element_size();
  Aux kind = y ? kOutput : residual && activation != kNone ? kResidual : kNoAux;
  const Tensor aux = kind == kOutput     ? laid_out(*y, channels_last)
                     : kind == kResidual ? laid_out(*residual, channels_last)
                                         : x;
  Tensor dx = wanted & kWantInput ? new_like(x, channels_last) : new_empty();
  Tensor dz = wanted & kWantResidual ? new_like(x, channels_last) : new_empty();
  const auto d_gamma = scratch<double>(shape.n * shape.c);
  const auto d_beta = scratch<double>(shape.n * shape.c);
  if (shape.n > 0)
    backward(shape, kernels(shape.type), input(dy, size), input(x, size),
             kind == kNoAux ? Input{} : input(aux, size), kind, {gamma.data(), beta.data()},
             statistics_of(statistics, shape), Activation(activation),
             wanted & kWantInput ? output(dx, shape) : Output{},
             wanted & kWantResidual ? output(dz, shape) : Output{}, {d_gamma.get(), d_beta.get()});
  auto gradient = [&](int64_t flag, const double* per_sample, const std::optional<Tensor>& p) {
    return wanted & flag && p ? parameter_gradient(per_sample, shape, splits, p->scalar_type())
                              : new_empty();
  };
  return {dx, dz, gradient(kWantWeight, d_gamma.get(), weight),
          gradient(kWantBias, d_beta.get(), bias)};
}

}  // namespace
}  // namespace batchfree

STABLE_TORCH_LIBRARY_IMPL(batchfree, CPU, m) {
  m.impl("group_norm", TORCH_BOX(&batchfree::group_norm));
  m.impl("group_norm_backward", TORCH_BOX(&batchfree::group_norm_backward));
}

STABLE_TORCH_LIBRARY_IMPL(batchfree, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&batchfree::cpu_capability));
}
