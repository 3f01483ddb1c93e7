// How the fused kernels share out their work, and how partial sums come together in one order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "fuse_neuron.h"
#include "threads.h"

namespace fuse {

constexpr int FLUSH = 32;  // rows summed in the compute type before they go into a double

// How the tensor is cut into items of work, and every item into runs of up to LANES neighbouring elements.
//   channels last: an item is some rows (n, p) of C channels; a run is a piece of one row
//   contiguous:    an item is some channels of some samples; a run is a piece of one map
// With `by_sample`, an item never spans two samples, so that a maximum over space has one writer.
struct Cut {
  int64_t C, P, N, W, items, rows, samples, wide, parts, windows;
  bool last;
  int places;  // positions of y behind one of the spikes handed on

  explicit Cut(const FuseSpec& k, bool by_sample = false, bool pooled = false)
      : C(k.C), P(k.P), N(k.N), W(k.W), last(k.channels_last), places(pooled && k.pool ? 4 : 1) {
    windows = P / places;
    rows = by_sample ? windows : std::max<int64_t>(64 / places, (N * windows + 63) / 64);
    samples = by_sample ? 1 : (N + 31) / 32;
    const int64_t groups = (N + samples - 1) / samples;
    wide = std::max<int64_t>(1, C * groups / 16);
    parts = (C + wide - 1) / wide;
    items = last ? (N * windows + rows - 1) / rows : groups * parts;
  }

  // A full run is compiled apart: with the number of lanes known, loops need neither head nor tail.
  template <class Run>
  static void full_or_part(const Run& run, int64_t offset, int64_t n, int64_t c, int64_t sample, int64_t out) {
    if (n >= LANES)
      run(offset, std::integral_constant<int, LANES>(), c, sample, out);
    else
      run(offset, int(n), c, sample, out);
  }
  // From the first position of a window to its others, in the order in which pooling scans them.
  int64_t shift(int place) const { return (place / 2 * W + place % 2) * C; }

  // Calls run(offset in one step, lanes, first channel, sample, offset in one step of spikes) for each run of an item;
  // under pooling the first offset is that of the window's first position.
  template <class Run>
  void walk(int64_t item, const Run& run) const {
    if (last) {
      for (int64_t r = item * rows, end = std::min(N * windows, r + rows); r < end; ++r) {
        int64_t place = r;
        if (places > 1) {
          const int64_t q = r % windows, half = W / 2;
          place = r / windows * P + q / half * 2 * W + q % half * 2;
        }
        for (int64_t c = 0; c < C; c += LANES) full_or_part(run, place * C + c, C - c, c, r / windows, r * C + c);
      }
      return;
    }
    const int64_t n0 = item / parts * samples, c0 = item % parts * wide;
    for (int64_t n = n0, end = std::min(N, n0 + samples); n < end; ++n)
      for (int64_t c = c0, c_end = std::min(C, c0 + wide); c < c_end; ++c)
        for (int64_t p = 0; p < P; p += LANES) full_or_part(run, (n * C + c) * P + p, P - p, c, n, (n * C + c) * P + p);
  }
};

// Per-channel numbers as the lanes of a run need them: channels last reads them in place, contiguous repeats one of
// them over the map.
template <class F>
struct Spread {
  const Cut& cut;
  const F* values;
  int64_t groups;
  std::vector<F> lanes;
  Spread(const Cut& cut, const F* values, int64_t groups)
      : cut(cut), values(values), groups(groups), lanes(cut.last ? 0 : groups * LANES) {}
  void load(int64_t c) {
    if (cut.last) return;
    for (int64_t g = 0; g < groups; ++g) std::fill_n(lanes.data() + g * LANES, LANES, values[g * cut.C + c]);
  }
  const F* at(int64_t c, int64_t g) const { return cut.last ? values + g * cut.C + c : lanes.data() + g * LANES; }
};

// Sums per channel, gathered in the compute type over a few rows or one run and then in double; one set per item.
template <class F>
struct Sums {
  const Cut& cut;
  int64_t groups, width, since = 0;
  std::vector<F> part;        // [groups][width]
  std::vector<double> total;  // [groups][C]

  Sums(const Cut& cut, int64_t groups)
      : cut(cut), groups(groups), width(cut.last ? cut.C : LANES), part(groups * width), total(groups * cut.C) {}
  F* at(int64_t c, int64_t g) { return part.data() + g * width + (cut.last ? c : 0); }
  void end_of_run(int64_t c, int n) {
    if (!cut.last) {
      for (int64_t g = 0; g < groups; ++g) total[g * cut.C + c] += add(at(0, g), n);
      std::fill(part.begin(), part.end(), F(0));
    } else if (c + n == cut.C && ++since == FLUSH) {
      flush();
    }
  }
  void flush() {
    if (cut.last)
      for (int64_t i = 0; i < groups * width; ++i) total[i] += double(part[i]);
    std::fill(part.begin(), part.end(), F(0));
    since = 0;
  }
  static F add(const F* values, int n) {
    F eight[8] = {}, sum = 0;
    int i = 0;
    for (; i + 8 <= n; i += 8)
      for (int j = 0; j < 8; ++j) eight[j] += values[i + j];
    for (; i < n; ++i) sum += values[i];
    return sum + (((eight[0] + eight[4]) + (eight[2] + eight[6])) + ((eight[1] + eight[5]) + (eight[3] + eight[7])));
  }
};

// Runs body(item, sums...) on all items and adds the per-item totals into `out` in the order of the items.
template <class F, class Body>
void reduce(const Cut& cut, int threads, int64_t groups, std::vector<double*> outs, const Body& body) {
  int64_t size = groups * cut.C, n = int64_t(outs.size());
  std::vector<double> all(cut.items * n * size);
  parallel(cut.items, threads, [&](int64_t item) {
    std::vector<Sums<F>> sums(n, Sums<F>(cut, groups));
    body(item, sums);
    for (auto& sum : sums) sum.flush();
    for (int64_t j = 0; j < n; ++j)
      std::copy(sums[j].total.begin(), sums[j].total.end(), all.begin() + (item * n + j) * size);
  });
  for (int64_t j = 0; j < n; ++j) {
    std::fill(outs[j], outs[j] + size, 0.0);
    for (int64_t item = 0; item < cut.items; ++item)
      for (int64_t i = 0; i < size; ++i) outs[j][i] += all[(item * n + j) * size + i];
  }
}

}  // namespace fuse
