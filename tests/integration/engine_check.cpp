// Runs the engine's kernels against plain loops, for instruction sets that this machine can only emulate.
// Weights and thresholds are small whole numbers and halves, so that every sum is exact in any order.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine.h"

namespace {

struct Case {
  int T, n, ic, oc, h, w, kernel, stride, pad;
  bool soft, real;
};

uint32_t state = 1;
uint32_t next() { return state = state * 1664525u + 1013904223u, state >> 8; }

int check(const Case& s) {
  const int oh = (s.h + 2 * s.pad - s.kernel) / s.stride + 1, ow = (s.w + 2 * s.pad - s.kernel) / s.stride + 1;
  const int taps = s.kernel * s.kernel, columns = s.ic * taps;
  std::vector<float> x(size_t(s.T) * s.n * s.ic * s.h * s.w), y(size_t(s.T) * s.n * s.oc * oh * ow),
      weight(s.oc * columns);
  for (auto& value : x) value = s.real ? float(int(next() % 5) - 2) : float(next() % 4 == 0);
  for (auto& value : weight) value = next() % 3 ? 0.f : float(int(next() % 7) - 3);

  std::vector<int32_t> starts{0};
  std::vector<SpPair> pairs;
  std::vector<SpWeight> weights;
  for (int o = 0; o < s.oc; ++o) {
    std::vector<int> kept;
    for (int i = 0; i < columns; ++i)
      if (weight[o * columns + i] != 0) kept.push_back(i), weights.push_back({weight[o * columns + i], i});
    for (size_t i = 0; i < kept.size(); i += 2) {
      const bool two = i + 1 < kept.size();
      pairs.push_back({weight[o * columns + kept[i]], two ? weight[o * columns + kept[i + 1]] : 0.f, uint16_t(kept[i]),
                       uint16_t(two ? kept[i + 1] : columns)});
    }
    starts.push_back(int32_t(s.real ? weights.size() : pairs.size()));
  }
  const std::vector<float> one(s.ic + s.oc, 1.f), half(s.ic + s.oc, .5f), zero(s.ic + s.oc, 0.f),
      minus(s.ic + s.oc, -1.f);

  SpBuffer buffers[4] = {{x.data(), SP_EXTERNAL, s.ic, s.h, s.w, 0, 0},
                         {nullptr, s.real ? SP_REAL : SP_WORDS, s.ic, s.h, s.w, s.pad, 0},
                         {nullptr, SP_WORDS, s.oc, oh, ow, 0, 0},
                         {y.data(), SP_EXTERNAL, s.oc, oh, ow, 0, 0}};
  for (int i : {1, 2}) buffers[i].data = std::calloc(1, size_t(sp_bytes(&buffers[i], s.T, s.n)));
  SpOp ops[3] = {};
  for (auto& op : ops)
    op.residual = op.real = op.spikes = -1, op.kernel_h = op.kernel_w = op.stride_h = op.stride_w = 1;
  for (auto& op : ops) op.dilation_h = op.dilation_w = 1;
  ops[0].code = sp_code("pointwise"), ops[0].in = 0, ops[0].channels = s.ic, ops[0].height = s.h, ops[0].width = s.w;
  ops[0].scale = one.data(), ops[0].bias = zero.data();
  if (s.real) {
    ops[0].real = 1;
  } else {
    ops[0].spikes = 1;
    ops[0].neuron = {zero.data(), half.data(), zero.data(), zero.data(), 0, 0};
  }
  ops[1].code = sp_code(s.real ? "conv_real" : "conv_lookup"), ops[1].in = 1, ops[1].spikes = 2;
  ops[1].kernel_h = ops[1].kernel_w = s.kernel, ops[1].stride_h = ops[1].stride_w = s.stride;
  ops[1].pad_h = ops[1].pad_w = s.pad, ops[1].channels = s.oc, ops[1].height = oh, ops[1].width = ow;
  ops[1].bias = half.data(), ops[1].starts = starts.data(), ops[1].pairs = pairs.data(),
  ops[1].weights = weights.data();
  ops[1].neuron = {half.data(), one.data(), s.soft ? minus.data() : zero.data(), zero.data(), s.soft, 0};
  ops[2].code = sp_code("pointwise"), ops[2].in = 2, ops[2].real = 3, ops[2].channels = s.oc, ops[2].height = oh;
  ops[2].width = ow, ops[2].scale = one.data(), ops[2].bias = zero.data();
  if (sp_run(ops, 3, buffers, 4, s.T, s.n, s.n, 2)) return 1;

  int wrong = 0, fired = 0;
  for (int i = 0; i < s.n; ++i)
    for (int o = 0; o < s.oc; ++o)
      for (int r = 0; r < oh; ++r)
        for (int c = 0; c < ow; ++c) {
          float v = 0;
          for (int t = 0; t < s.T; ++t) {
            float sum = .5f;
            for (int ch = 0; ch < s.ic; ++ch)
              for (int k = 0; k < taps; ++k) {
                const int yy = r * s.stride - s.pad + k / s.kernel, xx = c * s.stride - s.pad + k % s.kernel;
                if (yy < 0 || yy >= s.h || xx < 0 || xx >= s.w) continue;
                sum += weight[o * columns + ch * taps + k] *
                       x[((size_t(t) * s.n + i) * s.ic + ch) * s.h * s.w + yy * s.w + xx];
              }
            v = .5f * v + sum;
            const float spike = v >= 1.f;
            fired += spike != 0;
            wrong += spike != y[((size_t(t) * s.n + i) * s.oc + o) * oh * ow + r * ow + c];
            v = spike == 0 ? v : s.soft ? v - 1.f : 0.f;
          }
        }
  for (int i : {1, 2}) std::free(buffers[i].data);
  return wrong + (fired == 0);
}

}  // namespace

int main() {
  const Case cases[] = {
      {4, 1, 3, 5, 8, 8, 3, 1, 1, false, false}, {5, 3, 4, 4, 7, 9, 3, 2, 1, false, false},
      {7, 2, 2, 6, 5, 5, 1, 1, 0, true, false},  {13, 1, 2, 3, 2, 2, 3, 1, 1, false, false},
      {3, 9, 8, 4, 1, 1, 1, 1, 0, false, false}, {6, 1, 2, 3, 40, 3, 5, 1, 2, true, false},
      {4, 2, 3, 5, 8, 8, 3, 1, 1, false, true},  {9, 1, 3, 5, 5, 7, 3, 2, 1, true, true},
  };
  int failed = 0;
  for (const Case& s : cases)
    if (const int wrong = check(s)) {
      std::printf("T %d, n %d, %d x %d map, kernel %d: %d wrong\n", s.T, s.n, s.h, s.w, s.kernel, wrong);
      ++failed;
    }
  std::printf("lanes %d: %d of %d cases failed\n", sp_lanes(), failed, int(sizeof cases / sizeof *cases));
  return failed != 0;
}
