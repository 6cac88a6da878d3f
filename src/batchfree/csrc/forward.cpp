#include <cmath>
#include <cstdio>

#include "group_norm.h"

namespace batchfree {
namespace {

// Joins the moments of parts of a group. count(i) is the number of elements of part i.
template <class Part, class Count>
Moments join(int64_t parts, int64_t elements, const Part& part, const Count& count) {
  double mean = 0, m2 = 0;
  for (int64_t i = 0; i < parts; ++i) mean += part(i).mean * double(count(i));
  mean /= double(elements);
  for (int64_t i = 0; i < parts; ++i) {
    const double d = part(i).mean - mean;
    m2 += part(i).m2 + double(count(i)) * (d * d);
  }
  return {mean, m2};
}

void write_statistics(const Statistics& s, int64_t group, Moments moments, int64_t elements,
                      double eps) {
  const double rstd = 1.0 / std::sqrt(moments.m2 / double(elements) + eps);
  const float mean = float(moments.mean);
  s.mean[group] = mean;
  s.rstd[group] = float(rstd);
  s.shift[group] = float((double(mean) - moments.mean) * rstd);
}

struct Forward {
  const Shape& shape;
  const Kernels& kernels;
  Input x, residual;
  Parameters p;
  double eps;
  Activation activation;
  Output y;
  Statistics statistics;

  void channels_first() const;
  void channels_last() const;
};

void Forward::channels_first() const {
  const int64_t size = shape.element_size(), groups = shape.groups;
  const int64_t elements = shape.group_elements(), width = shape.group_channels();
  const int64_t leaves = divide_up(elements, kLeaf);
  const auto moments = scratch<Moments>(shape.n * groups * leaves);
  const auto kernel = kernels.apply[activation][residual.data != nullptr];
  const bool past_caches = exceeds_caches(shape, residual.data ? 3 : 2);

  auto leaf_elements = [&](int64_t leaf) {
    return leaf + 1 < leaves ? kLeaf : elements - (leaves - 1) * kLeaf;
  };
  auto measure_leaf = [&](int64_t group, int64_t leaf) {
    const int64_t sample = group / groups, first = (group - sample * groups) * elements;
    const char* begin = x.sample(sample) + (first + leaf * kLeaf) * size;
    moments[group * leaves + leaf] = kernels.moments(begin, leaf_elements(leaf));
  };
  auto join_leaves = [&](int64_t group) {
    const Moments* parts = &moments[group * leaves];
    const Moments all =
        join(leaves, elements, [&](int64_t i) { return parts[i]; }, leaf_elements);
    write_statistics(statistics, group, all, elements, eps);
  };
  // Positions [begin, begin + n) of one channel.
  auto apply = [&](int64_t sample, int64_t group, int64_t channel, int64_t begin, int64_t n) {
    const int64_t offset = (channel * shape.positions + begin) * size;
    const char* r = residual.data ? residual.sample(sample) + offset : nullptr;
    kernel(x.sample(sample) + offset, r, y.sample(sample) + offset, n,
           channel_of(statistics, group, p.gamma[channel], p.beta[channel]), past_caches);
  };

  const int64_t tasks = shape.n * groups;
  if (fills_threads(tasks) || tasks * elements <= kGrain) {
    parallel_each(tasks, elements, [&](int64_t group) {
      for (int64_t leaf = 0; leaf < leaves; ++leaf) measure_leaf(group, leaf);
      join_leaves(group);
      const int64_t sample = group / groups, first = (group - sample * groups) * width;
      for (int64_t k = 0; k < width; ++k)
        apply(sample, group, first + k, 0, shape.positions);
    });
    return;
  }
  parallel_each(tasks * leaves, kLeaf,
                [&](int64_t i) { measure_leaf(i / leaves, i % leaves); });
  parallel_each(tasks, leaves, join_leaves);
  const int64_t pieces = divide_up(shape.positions, kGrain);
  parallel_each(shape.n * shape.c * pieces, shape.positions / pieces, [&](int64_t i) {
    const int64_t row = i / pieces, begin = (i % pieces) * kGrain;
    const int64_t n = shape.positions - begin < kGrain ? shape.positions - begin : kGrain;
    apply(row / shape.c, row / width, row % shape.c, begin, n);
  });
}

void Forward::channels_last() const {
  const int64_t size = shape.element_size(), c = shape.c, rows = shape.positions;
  const int64_t width = shape.group_channels(), leaves = divide_up(rows, kLeafRows);
  const auto sums = scratch<float>(shape.n * leaves * 3 * c);
  const auto moments = scratch<double>(shape.n * 2 * c);
  const auto coefficients = scratch<float>(shape.n * 3 * c);
  const auto kernel = kernels.rows_apply[activation][residual.data != nullptr];
  const bool past_caches = exceeds_caches(shape, residual.data ? 3 : 2);

  auto leaf_rows = [&](int64_t leaf) {
    return leaf + 1 < leaves ? kLeafRows : rows - (leaves - 1) * kLeafRows;
  };
  auto measure_leaf = [&](int64_t sample, int64_t leaf) {
    float* out = &sums[(sample * leaves + leaf) * 3 * c];
    kernels.rows_moments(x.sample(sample) + leaf * kLeafRows * c * size, leaf_rows(leaf), c,
                         {out, out + c, out + 2 * c});
  };
  auto join_sample = [&](int64_t sample) {
    double *mean = &moments[sample * 2 * c], *m2 = mean + c;
    kernels.rows_join(&sums[sample * leaves * 3 * c], leaves, rows, c, mean, m2);
    float* out = &coefficients[sample * 3 * c];
    for (int64_t g = 0; g < shape.groups; ++g) {
      const int64_t group = sample * shape.groups + g, first = g * width;
      const Moments all = join(
          width, shape.group_elements(),
          [&](int64_t k) { return Moments{mean[first + k], m2[first + k]}; },
          [&](int64_t) { return rows; });
      write_statistics(statistics, group, all, shape.group_elements(), eps);
      for (int64_t k = first; k < first + width; ++k) {
        const Channel channel = channel_of(statistics, group, p.gamma[k], p.beta[k]);
        out[k] = channel.mean;
        out[c + k] = channel.scale;
        out[2 * c + k] = channel.offset;
      }
    }
  };
  auto apply_leaf = [&](int64_t sample, int64_t leaf) {
    const int64_t offset = leaf * kLeafRows * c * size;
    const float* in = &coefficients[sample * 3 * c];
    const char* r = residual.data ? residual.sample(sample) + offset : nullptr;
    kernel(x.sample(sample) + offset, r, y.sample(sample) + offset, leaf_rows(leaf), c,
           {in, in + c, in + 2 * c}, past_caches);
  };

  if (fills_threads(shape.n) || shape.n * shape.sample_elements() <= kGrain) {
    parallel_each(shape.n, shape.sample_elements(), [&](int64_t sample) {
      for (int64_t leaf = 0; leaf < leaves; ++leaf) measure_leaf(sample, leaf);
      join_sample(sample);
      for (int64_t leaf = leaves - 1; leaf >= 0; --leaf) apply_leaf(sample, leaf);
    });
    return;
  }
  const int64_t tasks = shape.n * leaves;
  parallel_each(tasks, kLeafRows * c, [&](int64_t i) { measure_leaf(i / leaves, i % leaves); });
  parallel_each(shape.n, leaves * c, join_sample);
  parallel_each(tasks, kLeafRows * c, [&](int64_t i) {
    const int64_t reversed = tasks - 1 - i;
    apply_leaf(reversed / leaves, reversed % leaves);
  });
}

constexpr int64_t kCacheLine = 64;

// Of the cache that a core shares with its neighbours. sysconf would give the sum over the socket.
int64_t last_cache_bytes() {
  int64_t kilobytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long long read = 0;
    if (std::fscanf(file, "%lldK", &read) == 1) kilobytes = read;
    std::fclose(file);
  }
  return (kilobytes > 0 ? kilobytes : 32 << 10) << 10;
}

}  // namespace

bool exceeds_caches(const Shape& shape, int64_t tensors) {
  static const int64_t limit = last_cache_bytes();
  // A row that ends inside of a cache line writes that line to memory in two parts: short ones not.
  const int64_t row = (shape.channels_last ? shape.c : shape.positions) * shape.element_size();
  if (row % kCacheLine && row < 64 * kCacheLine) return false;
  return shape.n * shape.sample_bytes() * tensors > limit;
}

void forward(const Shape& shape, const Kernels& kernels, Input x, Input residual, Parameters p,
             double eps, Activation activation, Output y, Statistics statistics) {
  const Forward task{shape, kernels, x, residual, p, eps, activation, y, statistics};
  shape.channels_last ? task.channels_last() : task.channels_first();
}

}  // namespace batchfree
