// Convolutions of spikes, driven by the spikes: forward and gradient of the weights.
//
//   y[m, o, h, w] = bias[o] + sum over spikes of x: weight[o, c, i, j]   where x[m, c, h + i - pad, w + j - pad] = 1
//   g_weight[o, c, i, j] = sum over spikes (m, c, h, w) of x: g[m, o, h + pad - i, w + pad - j]
//
// A spike adds a row of COLUMNS output channels to sums that stay in registers, so a product with 0 costs nothing. x
// comes as bits, in the order of memory of the tensor it was packed from.
//
// Each output element is summed by one thread in an order that the shapes alone decide: the result is the same for
// every number of threads.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")  // vectors are written out; -O3 only doubles the time it takes to compile
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "fuse.h"
#include "lanes.h"
#include "status.h"
#include "threads.h"

namespace {

template <class F>
using Lanes = typename Vector<F, 32>::type;
constexpr int64_t FIRST_LEVEL = 32 * 1024;  // bytes of cache that one block of weights or gradients may fill

// Memory of the thread's own, used again by the next call: fresh pages would cost as much as the sums.
template <class T>
T* scratch(int slot, int64_t size) {
  static thread_local std::vector<T> memory[4];
  if (int64_t(memory[slot].size()) < size) memory[slot].resize(size);
  return memory[slot].data();
}

// visit(i) for each of `count` bits from `begin` on that is set. Reads up to 8 bytes past the last one.
template <class Visit>
inline void each_bit(const uint8_t* bits, int64_t begin, int64_t count, const Visit& visit) {
  for (int64_t i = 0; i < count; i += 56) {
    uint64_t word;
    std::memcpy(&word, bits + ((begin + i) >> 3), 8);
    word >>= (begin + i) & 7;
    word &= (uint64_t(1) << std::min<int64_t>(56, count - i)) - 1;
    for (; word; word &= word - 1) visit(i + __builtin_ctzll(word));
  }
}

// visit(sample, position in the map, channel) for the spikes of some samples, rows and channels.
template <class Visit>
inline void each_spike(const EventSpec& k, const uint8_t* bits, int64_t m0, int64_t m1, int64_t h0, int64_t h1,
                       int64_t c0, int64_t c1, const Visit& visit) {
  for (int64_t m = m0; m < m1; ++m)
    if (k.x_last)
      for (int64_t p = h0 * k.W; p < h1 * k.W; ++p)
        each_bit(bits, (m * k.H * k.W + p) * k.in + c0, c1 - c0, [&](int64_t i) { visit(m, p, c0 + i); });
    else
      for (int64_t c = c0; c < c1; ++c)
        each_bit(bits, ((m * k.in + c) * k.H + h0) * k.W, (h1 - h0) * k.W,
                 [&](int64_t i) { visit(m, h0 * k.W + i, c); });
}

// Moves a map between the tensor (either layout) and rows of COLUMNS channels.
template <bool READ, class F, class Tensor>
void exchange(const EventSpec& k, Tensor* tensor, int64_t m, int64_t o0, int64_t columns, int64_t h0, int64_t h1,
              F* rows, int64_t row_of_h, int64_t width) {
  const int64_t n = std::min(columns, k.out - o0), P = k.out_H * k.out_W;
  for (int64_t h = h0; h < h1; ++h) {
    F* to = rows + (h - h0) * row_of_h;
    if (k.y_last) {
      Tensor* line = tensor + ((m * k.out_H + h) * k.out_W) * k.out + o0;
      for (int64_t w = 0; w < k.out_W; ++w)
        if constexpr (READ)
          std::copy(line + w * k.out, line + w * k.out + n, to + w * width);
        else
          std::copy(to + w * width, to + w * width + n, line + w * k.out);
      continue;
    }
    Tensor* line = tensor + (m * k.out + o0) * P + h * k.out_W;
    for (int64_t o = 0; o < n; ++o)
      for (int64_t w = 0; w < k.out_W; ++w)
        if constexpr (READ)
          to[w * width + o] = line[o * P + w];
        else
          line[o * P + w] = to[w * width + o];
  }
}

// sums[j] += the rows of `from` that the events name.
template <int VECTORS, class F>
inline void add_rows(const F* from, const int32_t* event, const int32_t* end, Lanes<F> (&sums)[VECTORS]) {
  constexpr int64_t LANES = 32 / sizeof(F);
  for (; event < end; ++event) {
    const F* row = from + *event;
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) sums[j] += load<Lanes<F>>(row + j * LANES);
  }
}

// The weights as [block of COLUMNS output channels][in][tap][COLUMNS], filled up with 0.
template <class F>
std::vector<F> packed(const EventSpec& k, const F* weight, int64_t columns, int64_t block) {
  const int64_t taps = k.kernel_h * k.kernel_w, rows = (k.in + block - 1) / block * block * taps;
  std::vector<F> all((k.out + columns - 1) / columns * rows * columns);
  parallel((k.out + columns - 1) / columns, k.threads, [&](int64_t part) {
    F* to = all.data() + part * rows * columns;
    const int64_t o0 = part * columns, n = std::min(columns, k.out - o0);
    for (int64_t c0 = 0; c0 < k.in; c0 += 16)  // a few input channels at a time, so that lines are used whole
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t c = c0, end = std::min(k.in, c0 + 16); c < end; ++c) {
          const int64_t row = (c / block * k.kernel_h + t / k.kernel_w) * block + c % block;
          F* line = to + (row * k.kernel_w + t % k.kernel_w) * columns;
          for (int64_t o = 0; o < n; ++o)
            line[o] = weight[(o0 + o) * k.out_stride + c * k.in_stride + t * k.tap_stride];
        }
  });
  return all;
}

template <int VECTORS, class F>
void forward(const EventSpec& k, const uint8_t* bits, const F* weight, const F* bias, F* y) {
  constexpr int64_t LANES = 32 / sizeof(F), COLUMNS = VECTORS * LANES;
  const int64_t P = k.H * k.W, out_P = k.out_H * k.out_W;
  const int64_t block = std::min(k.in, std::max<int64_t>(8, FIRST_LEVEL / (k.kernel_w * COLUMNS * int64_t(sizeof(F)))));
  const int64_t blocks = (k.in + block - 1) / block;
  const int64_t samples = std::max<int64_t>(1, (256 + out_P - 1) / out_P);  // enough to read a block's weights for
  product32(samples, P, k.in);                                              // events of an item are counted in 32 bits
  product32(std::max(k.W, block * k.kernel_w), COLUMNS, 2);  // and so are their places in a block of weights
  const std::vector<F> weights = packed(k, weight, COLUMNS, block);
  parallel((k.M + samples - 1) / samples, k.threads, [&](int64_t item) {
    const int64_t m0 = item * samples, m1 = std::min(k.M, m0 + samples), places = (m1 - m0) * P;
    // Events by block of input channels, sample and position: a row of the window is a run of events.
    int32_t* begins = scratch<int32_t>(0, blocks * (places + 1) + 1);
    std::fill(begins, begins + blocks * (places + 1) + 1, 0);
    each_spike(k, bits, m0, m1, 0, k.H, 0, k.in,
               [&](int64_t m, int64_t p, int64_t c) { ++begins[c / block * (places + 1) + (m - m0) * P + p + 1]; });
    for (int64_t i = 1; i <= blocks * (places + 1); ++i) begins[i] += begins[i - 1];
    int32_t* events = scratch<int32_t>(1, begins[blocks * (places + 1)] + 1);
    int32_t* next = scratch<int32_t>(2, blocks * (places + 1));
    std::copy(begins, begins + blocks * (places + 1), next);
    int32_t* column = scratch<int32_t>(3, P + k.in);
    for (int64_t p = 0; p < P; ++p) column[p] = int32_t(p % k.W * COLUMNS);
    for (int64_t c = 0; c < k.in; ++c) column[P + c] = int32_t(c % block * k.kernel_w * COLUMNS);
    each_spike(k, bits, m0, m1, 0, k.H, 0, k.in, [&](int64_t m, int64_t p, int64_t c) {
      events[next[c / block * (places + 1) + (m - m0) * P + p]++] = column[p] + column[P + c];
    });
    F* sums_of_all = scratch<F>(0, (m1 - m0) * out_P * COLUMNS);
    for (int64_t o0 = 0; o0 < k.out; o0 += COLUMNS) {
      Lanes<F> start[VECTORS] = {};
      for (int64_t o = o0; bias && o < std::min(k.out, o0 + COLUMNS); ++o)
        start[(o - o0) / LANES][(o - o0) % LANES] = bias[o];
      for (int64_t i = 0; i < (m1 - m0) * out_P; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(sums_of_all + i * COLUMNS + j * LANES, start[j]);
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t i = 0; i < k.kernel_h; ++i) {  // the weights of one block and row stay in the first level
          const F* from =
              weights.data() + (o0 * blocks * k.kernel_h + (b * k.kernel_h + i) * COLUMNS) * block * k.kernel_w;
          const int64_t h0 = std::max<int64_t>(0, k.pad_h - i), h1 = std::min(k.out_H, k.H + k.pad_h - i);
          for (int64_t m = 0; m < m1 - m0; ++m)
            for (int64_t h = h0; h < h1; ++h) {
              const int32_t* begin = begins + b * (places + 1) + m * P + (h + i - k.pad_h) * k.W;
              F* to = sums_of_all + (m * out_P + h * k.out_W) * COLUMNS;
              for (int64_t w = 0; w < k.out_W; ++w, to += COLUMNS) {
                const int64_t left = w - k.pad_w;
                const int32_t* event = events + begin[std::max<int64_t>(0, left)];
                const int32_t* end = events + begin[std::min(k.W, left + k.kernel_w)];
                if (event == end) continue;
                Lanes<F> sums[VECTORS];
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) sums[j] = load<Lanes<F>>(to + j * LANES);
                add_rows<VECTORS, F>(from - left * COLUMNS, event, end, sums);
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) store(to + j * LANES, sums[j]);
              }
            }
        }
      for (int64_t m = m0; m < m1; ++m)
        exchange<false>(k, y, m, o0, COLUMNS, 0, k.out_H, sums_of_all + (m - m0) * out_P * COLUMNS, k.out_W * COLUMNS,
                        COLUMNS);
    }
  });
}

template <int VECTORS, class F>
void weight_gradient(const EventSpec& k, const uint8_t* bits, const F* g, F* g_weight) {
  constexpr int64_t LANES = 32 / sizeof(F), COLUMNS = VECTORS * LANES;
  const int64_t taps = k.kernel_h * k.kernel_w;
  const int64_t high = k.H + k.kernel_h - 1, wide = k.W + k.kernel_w - 1, line = wide * COLUMNS;
  // A block of g with its border of zeros: some rows of one sample, or some samples.
  const int64_t lines = std::max<int64_t>(k.kernel_h, FIRST_LEVEL / (line * int64_t(sizeof(F))));
  const int64_t rows = std::min(k.H, lines - k.kernel_h + 1),
                samples = rows < k.H ? 1 : std::max<int64_t>(1, lines / high);
  const int64_t parts = (k.out + COLUMNS - 1) / COLUMNS;
  // Every item lays out its g once more, so there are no more of them than the threads need.
  const int64_t wanted = parts >= k.threads ? 1 : (k.threads + parts - 1) / parts;
  const int64_t block = std::min<int64_t>(128, (k.in + wanted - 1) / wanted), blocks = (k.in + block - 1) / block;
  product32(block, samples, rows, k.W);                        // events of an item are counted in 32 bits
  product32(samples, std::max(rows, k.H) + k.kernel_h, line);  // and so are their places in the block of g
  parallel(parts * blocks, k.threads, [&](int64_t item) {
    const int64_t o0 = item / blocks * COLUMNS, c0 = item % blocks * block, c1 = std::min(k.in, c0 + block);
    const int64_t most = samples * rows * k.W;
    F* sums_of_all = scratch<F>(0, (c1 - c0) * taps * COLUMNS);
    std::fill(sums_of_all, sums_of_all + (c1 - c0) * taps * COLUMNS, F(0));
    F* from = scratch<F>(1, samples * (rows + k.kernel_h - 1) * line);
    int32_t* events = scratch<int32_t>(0, (c1 - c0) * most);  // by channel
    int32_t* ends = scratch<int32_t>(1, c1 - c0);
    int32_t* place = scratch<int32_t>(2, k.H * k.W);
    for (int64_t p = 0; p < k.H * k.W; ++p) place[p] = int32_t(p / k.W * line + p % k.W * COLUMNS);
    for (int64_t m0 = 0; m0 < k.M; m0 += samples)
      for (int64_t h0 = 0; h0 < k.H; h0 += rows) {
        const int64_t m1 = std::min(k.M, m0 + samples), h1 = std::min(k.H, h0 + rows);
        const int64_t map = (h1 - h0 + k.kernel_h - 1) * line;
        const int64_t first = h0 + k.pad_h - k.kernel_h + 1, last = h1 + k.pad_h;  // rows of g
        const int64_t f0 = std::max<int64_t>(0, first), f1 = std::min(k.out_H, last);
        std::fill(from, from + (m1 - m0) * map, F(0));
        for (int64_t m = m0; m < m1; ++m)
          exchange<true>(k, g, m, o0, COLUMNS, f0, f1,
                         from + (m - m0) * map + (f0 - first) * line + (k.kernel_w - 1 - k.pad_w) * COLUMNS, line,
                         COLUMNS);
        for (int64_t c = c0; c < c1; ++c) ends[c - c0] = int32_t((c - c0) * most);
        each_spike(k, bits, m0, m1, h0, h1, c0, c1, [&](int64_t m, int64_t p, int64_t c) {
          events[ends[c - c0]++] = place[p] + int32_t((m - m0) * map - h0 * line);
        });
        for (int64_t c = 0; c < c1 - c0; ++c)
          for (int64_t i = 0; i < k.kernel_h && ends[c] > c * most; ++i)
            for (int64_t j = 0; j < k.kernel_w; ++j) {
              F* to = sums_of_all + (c * taps + i * k.kernel_w + j) * COLUMNS;
              Lanes<F> sums[VECTORS];
#pragma GCC unroll 8
              for (int v = 0; v < VECTORS; ++v) sums[v] = load<Lanes<F>>(to + v * LANES);
              add_rows<VECTORS, F>(from + (k.kernel_h - 1 - i) * line + (k.kernel_w - 1 - j) * COLUMNS,
                                   events + c * most, events + ends[c], sums);
#pragma GCC unroll 8
              for (int v = 0; v < VECTORS; ++v) store(to + v * LANES, sums[v]);
            }
      }
    const int64_t n = std::min(COLUMNS, k.out - o0);
    for (int64_t o = 0; o < n; ++o)
      for (int64_t c = c0; c < c1; ++c)
        for (int64_t t = 0; t < taps; ++t)
          g_weight[(o0 + o) * k.out_stride + c * k.in_stride + t * k.tap_stride] =
              sums_of_all[((c - c0) * taps + t) * COLUMNS + o];
  });
}

// Whether 64 output channels at a time leave few lanes idle; else 32. Doubles, for checks of the gradient, go by 16.
bool wide(int64_t out) { return (out + 63) / 64 * 64 <= out + out / 8; }

}  // namespace

// `type` is FUSE_FLOAT32 or FUSE_FLOAT64.
extern "C" {

int64_t fuse_events_count(int64_t n, const uint8_t* bits) {
  int64_t total = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    std::memcpy(&word, bits + i, 8);
    total += __builtin_popcountll(word);
  }
  for (; i < n; ++i) total += __builtin_popcount(bits[i]);
  return total;
}

int32_t fuse_events_forward(const EventSpec* spec, int32_t type, const uint8_t* bits, const void* weight,
                            const void* bias, void* y) {
  return guarded([&] {
    if (type == FUSE_FLOAT64)
      forward<4>(*spec, bits, static_cast<const double*>(weight), static_cast<const double*>(bias),
                 static_cast<double*>(y));
    else if (type != FUSE_FLOAT32)
      throw std::invalid_argument("element type");
    else if (wide(spec->out))
      forward<8>(*spec, bits, static_cast<const float*>(weight), static_cast<const float*>(bias),
                 static_cast<float*>(y));
    else
      forward<4>(*spec, bits, static_cast<const float*>(weight), static_cast<const float*>(bias),
                 static_cast<float*>(y));
  });
}

int32_t fuse_events_weight(const EventSpec* spec, int32_t type, const uint8_t* bits, const void* g, void* g_weight) {
  return guarded([&] {
    if (type == FUSE_FLOAT64)
      weight_gradient<4>(*spec, bits, static_cast<const double*>(g), static_cast<double*>(g_weight));
    else if (type != FUSE_FLOAT32)
      throw std::invalid_argument("element type");
    else if (wide(spec->out))
      weight_gradient<8>(*spec, bits, static_cast<const float*>(g), static_cast<float*>(g_weight));
    else
      weight_gradient<4>(*spec, bits, static_cast<const float*>(g), static_cast<float*>(g_weight));
  });
}

}  // extern "C"
