#include "group_norm.h"

namespace batchfree {
namespace {

// One channel of one sample. `group` counts through all samples.
struct Row {
  int64_t sample, group, channel;
  Row next(int64_t k) const { return {sample, group, channel + k}; }
};

struct Backward {
  const Shape& shape;
  const Kernels& kernels;
  Input dy, x, aux;
  Aux kind;
  Parameters p;
  Statistics statistics;
  Activation activation;
  Output dx, dz;
  ParameterGradients gradients;

  // Where the first pass leaves dz for the second. An activation with an exponential costs more to
  // differentiate twice than dz costs to write and read.
  Output kept() const {
    if (dz.data) return dz;
    return activation >= kSilu ? dx : Output{};
  }
  // That are read or written.
  int64_t tensors() const { return 3 + (aux.data ? 1 : 0) + (dz.data ? 1 : 0); }
  // dx = scale * dz - a - (x - mean) * b, with S1 and S2 of the group; of a gamma of 1.
  ChannelGradient input_gradient(int64_t group, double s1, double s2) const {
    const double rstd = statistics.rstd[group], each = rstd / double(shape.group_elements());
    const double shift = statistics.shift[group];
    return {float(rstd), float(each * (s1 + shift * s2)), float(rstd * each * s2)};
  }
  // From sum dz and sum dz * (x - mean) to sum dz * xh.
  double gamma_gradient(int64_t group, double sum_dz, double sum_dz_xc) const {
    return double(statistics.rstd[group]) * sum_dz_xc + double(statistics.shift[group]) * sum_dz;
  }

  void channels_first() const;
  void channels_last() const;
};

void Backward::channels_first() const {
  const int64_t size = shape.element_size(), groups = shape.groups, n = shape.positions;
  const int64_t width = shape.group_channels(), leaves = divide_up(n, kLeaf);
  const Output dz_kept = kept();
  // Not where dz was just written to the same lines.
  const bool past_caches = dz_kept.data != dx.data && exceeds_caches(shape, tensors());
  const auto first_pass = kernels.backward_sums[activation][kind];
  const auto second_pass = dz_kept.data ? kernels.backward_input[kNone][kNoAux]
                                        : kernels.backward_input[activation][kind];

  auto sum_leaf = [&](Row row, int64_t leaf, float* sums) {
    const int64_t begin = leaf * kLeaf, count = leaf + 1 < leaves ? kLeaf : n - begin;
    const int64_t offset = (row.channel * n + begin) * size;
    first_pass(x.sample(row.sample) + offset, dy.sample(row.sample) + offset,
               aux.data ? aux.sample(row.sample) + offset : nullptr,
               dz_kept.data ? dz_kept.sample(row.sample) + offset : nullptr, count,
               channel_of(statistics, row.group, p.gamma[row.channel], p.beta[row.channel]), sums);
  };
  auto write_sums = [&](Row row, double sum_dz, double sum_dz_xc) {
    const int64_t at = row.sample * shape.c + row.channel;
    gradients.beta[at] = sum_dz;
    gradients.gamma[at] = gamma_gradient(row.group, sum_dz, sum_dz_xc);
  };
  // Of a group whose first channel this row is.
  auto group_gradient = [&](Row first) {
    const int64_t at = first.sample * shape.c + first.channel;
    double s1 = 0, s2 = 0;
    for (int64_t k = 0; k < width; ++k) {
      const double gamma = p.gamma[first.channel + k];
      s1 += gamma * gradients.beta[at + k];
      s2 += gamma * gradients.gamma[at + k];
    }
    return input_gradient(first.group, s1, s2);
  };
  // Positions [begin, begin + count) of one channel.
  auto write_input = [&](Row row, int64_t begin, int64_t count, ChannelGradient g) {
    const int64_t offset = (row.channel * n + begin) * size;
    const float gamma = p.gamma[row.channel];
    const char* incoming = dz_kept.data ? dz_kept.sample(row.sample) : dy.sample(row.sample);
    second_pass(x.sample(row.sample) + offset, incoming + offset,
                aux.data ? aux.sample(row.sample) + offset : nullptr,
                dx.sample(row.sample) + offset, count,
                channel_of(statistics, row.group, gamma, p.beta[row.channel]),
                {g.scale * gamma, g.a, g.b}, past_caches);
  };

  const int64_t tasks = shape.n * groups, elements = shape.group_elements();
  if (fills_threads(tasks) || tasks * elements <= kGrain) {
    parallel_each(tasks, elements, [&](int64_t group) {
      const int64_t sample = group / groups;
      const Row first{sample, group, (group - sample * groups) * width};
      for (int64_t k = 0; k < width; ++k) {
        double total[2] = {};
        for (int64_t leaf = 0; leaf < leaves; ++leaf) {
          float sums[2];
          sum_leaf(first.next(k), leaf, sums);
          total[0] += sums[0];
          total[1] += sums[1];
        }
        write_sums(first.next(k), total[0], total[1]);
      }
      if (!dx.data) return;
      const ChannelGradient gradient = group_gradient(first);
      for (int64_t k = 0; k < width; ++k) write_input(first.next(k), 0, n, gradient);
    });
    return;
  }
  const int64_t rows = shape.n * shape.c;
  auto row_of = [&](int64_t i) { return Row{i / shape.c, i / width, i % shape.c}; };
  const auto sums = scratch<float>(rows * leaves * 2);
  parallel_each(rows * leaves, n / leaves,
                [&](int64_t i) { sum_leaf(row_of(i / leaves), i % leaves, &sums[2 * i]); });
  parallel_each(rows, leaves, [&](int64_t row) {
    double total[2] = {};
    for (int64_t i = row * leaves; i < (row + 1) * leaves; ++i) {
      total[0] += sums[2 * i];
      total[1] += sums[2 * i + 1];
    }
    write_sums(row_of(row), total[0], total[1]);
  });
  if (!dx.data) return;
  const auto of_groups = scratch<ChannelGradient>(tasks);
  parallel_each(tasks, width,
                [&](int64_t group) { of_groups[group] = group_gradient(row_of(group * width)); });
  const int64_t pieces = divide_up(n, kGrain);
  parallel_each(rows * pieces, n / pieces, [&](int64_t i) {
    const Row row = row_of(i / pieces);
    const int64_t begin = (i % pieces) * kGrain;
    write_input(row, begin, n - begin < kGrain ? n - begin : kGrain, of_groups[row.group]);
  });
}

void Backward::channels_last() const {
  const int64_t size = shape.element_size(), c = shape.c, rows = shape.positions;
  const int64_t width = shape.group_channels(), leaves = divide_up(rows, kLeafRows);
  const Output dz_kept = kept();
  const bool past_caches = dz_kept.data != dx.data && exceeds_caches(shape, tensors());
  const auto first_pass = kernels.rows_backward_sums[activation][kind];
  const auto second_pass = dz_kept.data ? kernels.rows_backward_input[kNone][kNoAux]
                                        : kernels.rows_backward_input[activation][kind];
  const auto sums = scratch<float>(shape.n * leaves * 2 * c);
  const auto coefficients = scratch<float>(shape.n * 6 * c);

  auto leaf_rows = [&](int64_t leaf) {
    return leaf + 1 < leaves ? kLeafRows : rows - (leaves - 1) * kLeafRows;
  };
  auto channels = [&](int64_t sample) {
    const float* f = &coefficients[sample * 6 * c];
    return Channels{f, f + c, f + 2 * c};
  };
  auto prepare = [&](int64_t sample) {
    float* f = &coefficients[sample * 6 * c];
    for (int64_t k = 0; k < c; ++k) {
      const Channel channel =
          channel_of(statistics, sample * shape.groups + k / width, p.gamma[k], p.beta[k]);
      f[k] = channel.mean;
      f[c + k] = channel.scale;
      f[2 * c + k] = channel.offset;
    }
  };
  auto sum_leaf = [&](int64_t sample, int64_t leaf) {
    const int64_t offset = leaf * kLeafRows * c * size;
    float* out = &sums[(sample * leaves + leaf) * 2 * c];
    first_pass(x.sample(sample) + offset, dy.sample(sample) + offset,
               aux.data ? aux.sample(sample) + offset : nullptr,
               dz_kept.data ? dz_kept.sample(sample) + offset : nullptr, leaf_rows(leaf), c,
               channels(sample), out, out + c);
  };
  auto join_sample = [&](int64_t sample) {
    double *beta = gradients.beta + sample * c, *gamma = gradients.gamma + sample * c;
    for (int64_t k = 0; k < c; ++k) beta[k] = gamma[k] = 0;
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const float* in = &sums[(sample * leaves + leaf) * 2 * c];
      for (int64_t k = 0; k < c; ++k) beta[k] += in[k];
      for (int64_t k = 0; k < c; ++k) gamma[k] += in[c + k];
    }
    float* f = &coefficients[sample * 6 * c];
    for (int64_t g = 0; g < shape.groups; ++g) {
      const int64_t group = sample * shape.groups + g;
      double s1 = 0, s2 = 0;
      for (int64_t k = g * width; k < (g + 1) * width; ++k) {
        gamma[k] = gamma_gradient(group, beta[k], gamma[k]);
        s1 += double(p.gamma[k]) * beta[k];
        s2 += double(p.gamma[k]) * gamma[k];
      }
      const ChannelGradient gradient = input_gradient(group, s1, s2);
      for (int64_t k = g * width; k < (g + 1) * width; ++k) {
        f[3 * c + k] = gradient.scale * p.gamma[k];
        f[4 * c + k] = gradient.a;
        f[5 * c + k] = gradient.b;
      }
    }
  };
  auto write_leaf = [&](int64_t sample, int64_t leaf) {
    const int64_t offset = leaf * kLeafRows * c * size;
    const float* f = &coefficients[sample * 6 * c];
    const char* incoming = dz_kept.data ? dz_kept.sample(sample) : dy.sample(sample);
    second_pass(x.sample(sample) + offset, incoming + offset,
                aux.data ? aux.sample(sample) + offset : nullptr, dx.sample(sample) + offset,
                leaf_rows(leaf), c, channels(sample), {f + 3 * c, f + 4 * c, f + 5 * c},
                past_caches);
  };

  if (fills_threads(shape.n) || shape.n * shape.sample_elements() <= kGrain) {
    parallel_each(shape.n, shape.sample_elements(), [&](int64_t sample) {
      prepare(sample);
      for (int64_t leaf = 0; leaf < leaves; ++leaf) sum_leaf(sample, leaf);
      join_sample(sample);
      if (!dx.data) return;
      for (int64_t leaf = leaves - 1; leaf >= 0; --leaf) write_leaf(sample, leaf);
    });
    return;
  }
  const int64_t tasks = shape.n * leaves;
  parallel_each(shape.n, c, prepare);
  parallel_each(tasks, kLeafRows * c, [&](int64_t i) { sum_leaf(i / leaves, i % leaves); });
  parallel_each(shape.n, leaves * c, join_sample);
  if (!dx.data) return;
  parallel_each(tasks, kLeafRows * c, [&](int64_t i) {
    const int64_t reversed = tasks - 1 - i;
    write_leaf(reversed / leaves, reversed % leaves);
  });
}

}  // namespace

void backward(const Shape& shape, const Kernels& kernels, Input dy, Input x, Input aux, Aux kind,
              Parameters p, Statistics statistics, Activation activation, Output dx, Output dz,
              ParameterGradients gradients) {
  const Backward task{shape,      kernels, dy, x,  aux,       kind, p,
                      statistics, activation, dx, dz, gradients};
  shape.channels_last ? task.channels_last() : task.channels_first();
}

}  // namespace batchfree
