// From torch tensors to the plain buffers of group_norm.h: checks, layouts, conversions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <optional>
#include <vector>

#include "group_norm.h"

namespace batchfree {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether the elements of each sample are dense in memory, in this order. The distance between
// samples does not matter, so a slice of a batch is served as the batch is.
inline bool samples_dense(const Tensor& t, bool channels_last) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  auto fits = [&](size_t d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
    return true;
  };
  if (channels_last && !fits(1)) return false;
  for (size_t d = sizes.size() - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return channels_last || fits(1);
}

inline MemoryFormat channels_last_format(const Tensor& t) {
  return t.dim() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// t itself where its samples are dense in the layout, else a copy.
inline Tensor laid_out(const Tensor& t, bool channels_last) {
  if (samples_dense(t, channels_last)) return t;
  return torch::stable::contiguous(
      t, channels_last ? channels_last_format(t) : MemoryFormat::Contiguous);
}

inline Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                         ScalarType type) {
  int32_t dtype = type == ScalarType::Float      ? aoti_torch_dtype_float32()
                  : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                 : aoti_torch_dtype_float16();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(),
                                                  strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor new_contiguous(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= sizes[d] < 1 ? 1 : sizes[d]) strides[d] = stride;
  return new_tensor(sizes, strides, type);
}

inline Tensor new_empty() { return new_contiguous({0}, ScalarType::Float); }

// Dense, of x's shape and type.
inline Tensor new_like(const Tensor& x, bool channels_last) {
  const auto s = x.sizes();
  const std::vector<int64_t> sizes(s.begin(), s.end());
  if (!channels_last) return new_contiguous(sizes, x.scalar_type());
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  auto next = [&](size_t d) {
    strides[d] = stride;
    stride *= sizes[d] < 1 ? 1 : sizes[d];
  };
  next(1);
  for (size_t d = sizes.size() - 1; d >= 2; --d) next(d);
  next(0);
  return new_tensor(sizes, strides, x.scalar_type());
}

inline Input input(const Tensor& t, int64_t element_size) {
  return {static_cast<const char*>(t.const_data_ptr()), t.stride(0) * element_size};
}

inline Output output(const Tensor& t, const Shape& shape) {
  return {static_cast<char*>(t.mutable_data_ptr()), shape.sample_bytes()};
}

inline bool serves(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline ElementType element_type(ScalarType type) {
  return type == ScalarType::Float ? kFloat32 : type == ScalarType::BFloat16 ? kBFloat16 : kFloat16;
}

// A storage that was freed, as FSDP frees those of parameters, leaves a tensor without memory.
inline void check_memory(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 0 || t.const_data_ptr(), "batchfree::group_norm: ", name,
                  " has no memory: its storage was freed");
}

inline void check_like(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == x.scalar_type(), "batchfree::group_norm: ", name,
                  " must have x's device and dtype");
  const auto a = t.sizes(), b = x.sizes();
  STD_TORCH_CHECK(a.size() == b.size(), "batchfree::group_norm: ", name, " must have x's shape");
  for (size_t d = 0; d < a.size(); ++d)
    STD_TORCH_CHECK(a[d] == b[d], "batchfree::group_norm: ", name, " must have x's shape");
  check_memory(name, t);
}

// The shape of x after every check that its memory needs.
inline Shape check_input(const Tensor& x, int64_t groups, int64_t activation) {
  STD_TORCH_CHECK(x.is_cpu() && serves(x.scalar_type()),
                  "batchfree::group_norm: x must be float32, bfloat16 or float16 on the CPU");
  STD_TORCH_CHECK(x.dim() >= 2, "batchfree::group_norm: x must have shape (N, C, *)");
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations,
                  "batchfree::group_norm: no such activation: ", activation);
  check_memory("x", x);
  const auto sizes = x.sizes();
  int64_t positions = 1;
  for (size_t d = 2; d < sizes.size(); ++d) positions *= sizes[d];
  STD_TORCH_CHECK(groups > 0 && sizes[1] > 0 && positions > 0 && sizes[1] % groups == 0,
                  "batchfree::group_norm: ", groups, " groups do not divide ", sizes[1],
                  " channels at ", positions, " positions");
  return {sizes[0], sizes[1], positions, groups, false, element_type(x.scalar_type())};
}

// One value per channel in float32: the tensor's own memory where it serves, else a converted copy.
// In a copy every NaN is the plain one, which rounding to bfloat16 relies on (vector.h).
class ChannelValues {
 public:
  ChannelValues(const char* name, const std::optional<Tensor>& t, const Tensor& x, float missing) {
    const int64_t c = x.size(1);
    if (!t) {
      values_.assign(size_t(c), missing);
      return;
    }
    STD_TORCH_CHECK(t->is_cpu() && t->dim() == 1 && t->size(0) == c, "batchfree::group_norm: ", name,
                    " must hold one value per channel, on x's device");
    STD_TORCH_CHECK(t->scalar_type() == x.scalar_type() || t->scalar_type() == ScalarType::Float,
                    "batchfree::group_norm: ", name, " must be float32 or of x's dtype");
    check_memory(name, *t);
    const int64_t stride = t->stride(0);
    if (x.scalar_type() == ScalarType::Float && (stride == 1 || c == 1)) {
      borrowed_ = *t;
      return;
    }
    values_.resize(size_t(c));
    const void* p = t->const_data_ptr();
    if (t->scalar_type() == ScalarType::Float) copy(static_cast<const float*>(p), stride);
    else if (t->scalar_type() == ScalarType::BFloat16)
      copy(static_cast<const c10::BFloat16*>(p), stride);
    else
      copy(static_cast<const c10::Half*>(p), stride);
  }
  const float* data() const {
    return borrowed_ ? static_cast<const float*>(borrowed_->const_data_ptr()) : values_.data();
  }

 private:
  template <class E>
  void copy(const E* p, int64_t stride) {
    for (size_t i = 0; i < values_.size(); ++i) {
      const float value = float(p[int64_t(i) * stride]);
      values_[i] = value == value ? value : NAN;
    }
  }
  std::optional<Tensor> borrowed_;
  std::vector<float> values_;
};

}  // namespace batchfree
