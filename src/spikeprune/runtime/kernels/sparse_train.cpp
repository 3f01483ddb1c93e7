// Convolution with few weights left, for training: forward, gradient to the input, gradient of the weights alive.
//
// Samples (time steps times batch) are taken in blocks of 16, and a block is laid out [C][H][W][16] with its border
// of zeros, so that one weight meets 16 samples at once in registers:
//   y[o][h][w] = sum over the weights alive of o: weight * x[c][h + i][w + j]
// The gradient to the input is the same sum with the kernel turned by half a circle and the roles of c and o swapped.
// Rows of the map are the outer loop: the rows of x that one row of y reads stay in the second-level cache.
//
// Blocks are independent of each other and sums are added in the order of the blocks, so the number of threads
// changes no bit of the result.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "abi.h"
#include "lanes.h"
#include "status.h"
#include "threads.h"

extern "C" {
// One stride-1 convolution of M samples. The weights alive are listed by output channel, as in a CSR matrix of
// [out][in * kernel_h * kernel_w].
struct SparseSpec {
  int64_t M, in, H, W, out, out_H, out_W, kernel_h, kernel_w, pad_h, pad_w, threads;
  int64_t x_stride[4], y_stride[4];  // of sample, channel, row, column, in elements
};
}

namespace {

constexpr int64_t BLOCK = 16;
using Lanes = Vector<float, 32>::type;  // eight samples

inline float sum(Lanes v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

#if defined(__AVX__)
inline void transpose(Lanes (&v)[8]) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = __m256(v[i]);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = Lanes(_mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    v[i + 4] = Lanes(_mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#else
inline void transpose(Lanes (&v)[8]) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < i; ++j) {
      const float other = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = other;
    }
}
#endif

// A block of samples as [C][H + 2 pad_h][W + 2 pad_w][16]. Its memory is the thread's own and used again by the next
// block in the same slot: fresh pages for every layer would cost as much as the arithmetic.
struct Block {
  int64_t C, H, W, pad_h, pad_w, high, wide;
  float* data;

  Block(int slot, int64_t C, int64_t H, int64_t W, int64_t pad_h, int64_t pad_w)
      : C(C), H(H), W(W), pad_h(pad_h), pad_w(pad_w), high(H + 2 * pad_h), wide(W + 2 * pad_w) {
    product32(C, high, wide, BLOCK);  // offsets inside of a block are counted in 32 bits
    static thread_local std::vector<float> memory[3];
    if (int64_t(memory[slot].size()) < C * high * wide * BLOCK) memory[slot].resize(C * high * wide * BLOCK);
    data = memory[slot].data();
  }
  float* at(int64_t c, int64_t h, int64_t w) { return data + ((c * high + h) * wide + w) * BLOCK; }

  // The first `count` samples from m0 on; the block's other lanes and its border become 0.
  void read(const float* tensor, const int64_t* stride, int64_t m0, int64_t count) {
    if (pad_h || pad_w || count < BLOCK) std::fill(data, data + C * high * wide * BLOCK, 0.0f);
    copy<true>(tensor, stride, m0, count);
  }
  void write(float* tensor, const int64_t* stride, int64_t m0, int64_t count) {
    copy<false>(tensor, stride, m0, count);
  }

 private:
  template <bool READ, class Float>
  void copy(Float* tensor, const int64_t* stride, int64_t m0, int64_t count) {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t h = 0; h < H; ++h) {
        float* row = at(c, h + pad_h, pad_w);
        Float* line = tensor + m0 * stride[0] + c * stride[1] + h * stride[2];
        int64_t w = 0;
        for (; stride[3] == 1 && count == BLOCK && w + 8 <= W; w += 8)
          for (int64_t m = 0; m < BLOCK; m += 8) {
            Lanes v[8];
            for (int i = 0; i < 8; ++i)
              v[i] = load<Lanes>(READ ? line + (m + i) * stride[0] + w : row + (w + i) * BLOCK + m);
            transpose(v);
            for (int i = 0; i < 8; ++i)
              if constexpr (READ)
                store(row + (w + i) * BLOCK + m, v[i]);
              else
                store(line + (m + i) * stride[0] + w, v[i]);
          }
        for (; w < W; ++w)
          for (int64_t m = 0; m < count; ++m)
            if constexpr (READ)
              row[w * BLOCK + m] = line[m * stride[0] + w * stride[3]];
            else
              line[m * stride[0] + w * stride[3]] = row[w * BLOCK + m];
      }
  }
};

// Sums over the weights of one output channel for a tile of HIGH x WIDE positions, 16 samples each.
template <int HIGH, int WIDE>
inline void tile(const float* x, int64_t row, const int32_t* offset, const float* weight, int64_t n, float* y,
                 int64_t y_row) {
  Lanes sums[HIGH][WIDE][2] = {};
  for (int64_t k = 0; k < n; ++k) {
    const float* from = x + offset[k];
    const float w = weight[k];
#pragma GCC unroll 4
    for (int a = 0; a < HIGH; ++a)
#pragma GCC unroll 4
      for (int b = 0; b < WIDE; ++b) {
        sums[a][b][0] += w * load<Lanes>(from + a * row + b * BLOCK);
        sums[a][b][1] += w * load<Lanes>(from + a * row + b * BLOCK + 8);
      }
  }
#pragma GCC unroll 4
  for (int a = 0; a < HIGH; ++a)
#pragma GCC unroll 4
    for (int b = 0; b < WIDE; ++b) {
      store(y + a * y_row + b * BLOCK, sums[a][b][0]);
      store(y + a * y_row + b * BLOCK + 8, sums[a][b][1]);
    }
}

// Where the weights alive find their inputs, relative to the window's first element.
std::vector<int32_t> offsets(const SparseSpec& k, const int32_t* columns, int64_t n, const Block& x) {
  std::vector<int32_t> found(n);
  const int64_t taps = k.kernel_h * k.kernel_w;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t c = columns[j] / taps, i = columns[j] % taps / k.kernel_w, l = columns[j] % k.kernel_w;
    found[j] = int32_t(((c * x.high + i) * x.wide + l) * BLOCK);
  }
  return found;
}

void convolve(const SparseSpec& k, Block& x, Block& y, const int32_t* begins, const int32_t* offset,
              const float* weight) {
  const int64_t row = x.wide * BLOCK, y_row = y.wide * BLOCK, H = k.out_H, W = k.out_W;
  // Tiles at the far end are moved back to fit and compute a few positions twice.
  const bool strip = W >= 4, square = !strip && W >= 2 && H >= 2;
  const int64_t high = square ? 2 : 1, wide = strip ? 4 : square ? 2 : 1;
  for (int64_t h0 = 0; h0 < H; h0 += high) {
    const int64_t h = std::min(h0, H - high);
    for (int64_t o = 0; o < k.out; ++o) {
      const int64_t first = begins[o], n = begins[o + 1] - first;
      for (int64_t w0 = 0; w0 < W; w0 += wide) {
        const int64_t w = std::min(w0, W - wide);
        const float* from = x.at(0, h, w);
        float* to = y.at(o, h, w);
        if (strip)
          tile<1, 4>(from, row, offset + first, weight + first, n, to, y_row);
        else if (square)
          tile<2, 2>(from, row, offset + first, weight + first, n, to, y_row);
        else
          tile<1, 1>(from, row, offset + first, weight + first, n, to, y_row);
      }
    }
  }
}

// Adds one block's share of the weights' gradient: gradient[k] += sum over positions and samples of g * x.
void correlate(const SparseSpec& k, Block& x, Block& g, const int32_t* begins, const int32_t* offset, float* gradient) {
  const int64_t row = x.wide * BLOCK, second_level = 96 * 1024;  // floats
  const int64_t rows = std::max<int64_t>(1, second_level / (k.in * row) - (k.kernel_h - 1));
  for (int64_t h0 = 0; h0 < k.out_H; h0 += rows) {
    const int64_t h1 = std::min(k.out_H, h0 + rows);
    for (int64_t o = 0; o < k.out; ++o)
      for (int64_t j = begins[o]; j < begins[o + 1]; ++j) {
        Lanes sums[4] = {};
        for (int64_t h = h0; h < h1; ++h) {
          const float *a = x.at(0, h, 0) + offset[j], *b = g.at(o, h + g.pad_h, g.pad_w);
          int64_t i = 0;
          for (; i + 32 <= k.out_W * BLOCK; i += 32)
#pragma GCC unroll 4
            for (int s = 0; s < 4; ++s) sums[s] += load<Lanes>(a + i + 8 * s) * load<Lanes>(b + i + 8 * s);
          for (; i < k.out_W * BLOCK; i += 8) sums[0] += load<Lanes>(a + i) * load<Lanes>(b + i);
        }
        gradient[j] += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
      }
  }
}

int64_t blocks(const SparseSpec& k) { return (k.M + BLOCK - 1) / BLOCK; }

}  // namespace

extern "C" {

const char* sparse_train_abi(void) {
  static const Abi abi({{"SparseSpec", sizeof(SparseSpec)},
                        {"SparseSpec.threads", offsetof(SparseSpec, threads)},
                        {"SparseSpec.y_stride", offsetof(SparseSpec, y_stride)}});
  return abi.text();
}

// y[M, out, out_H, out_W] from x[M, in, H, W]; begins [out + 1], columns and weights as in a CSR matrix.
int32_t sparse_train_forward(const SparseSpec* spec, const float* x, const int32_t* begins, const int32_t* columns,
                             const float* weights, float* y) {
  return guarded([&] {
    const SparseSpec& k = *spec;
    parallel(blocks(k), k.threads, [&](int64_t b) {
      const int64_t m = b * BLOCK, count = std::min(BLOCK, k.M - m);
      Block in(0, k.in, k.H, k.W, k.pad_h, k.pad_w), out(1, k.out, k.out_H, k.out_W, 0, 0);
      in.read(x, k.x_stride, m, count);
      convolve(k, in, out, begins, offsets(k, columns, begins[k.out], in).data(), weights);
      out.write(y, k.y_stride, m, count);
    });
  });
}

// The gradients from that of y, g: of the weights alive, and (unless g_x is null) of x, laid out as x. For the latter
// the weights alive are given once more, by input channel and with the kernel turned.
int32_t sparse_train_backward(const SparseSpec* spec, const float* x, const float* g, const int32_t* begins,
                              const int32_t* columns, float* gradient, const int32_t* turned_begins,
                              const int32_t* turned_columns, const float* turned_weights, float* g_x) {
  return guarded([&] {
    const SparseSpec& k = *spec;
    SparseSpec turned = k;
    turned.in = k.out, turned.H = k.out_H, turned.W = k.out_W;
    turned.out = k.in, turned.out_H = k.H, turned.out_W = k.W;
    turned.pad_h = k.kernel_h - 1 - k.pad_h, turned.pad_w = k.kernel_w - 1 - k.pad_w;
    const int64_t n = begins[k.out];
    std::vector<float> parts(n * blocks(k));
    parallel(blocks(k), k.threads, [&](int64_t b) {
      const int64_t m = b * BLOCK, count = std::min(BLOCK, k.M - m);
      Block in(0, k.in, k.H, k.W, k.pad_h, k.pad_w);
      Block out(1, k.out, k.out_H, k.out_W, turned.pad_h, turned.pad_w);
      in.read(x, k.x_stride, m, count);
      out.read(g, k.y_stride, m, count);
      correlate(k, in, out, begins, offsets(k, columns, n, in).data(), parts.data() + b * n);
      if (!g_x) return;
      Block back(2, k.in, k.H, k.W, 0, 0);
      convolve(turned, out, back, turned_begins, offsets(turned, turned_columns, n, out).data(), turned_weights);
      back.write(g_x, k.x_stride, m, count);
    });
    std::fill(gradient, gradient + n, 0.0f);
    for (int64_t b = 0; b < blocks(k); ++b)
      for (int64_t j = 0; j < n; ++j) gradient[j] += parts[b * n + j];
  });
}

}  // extern "C"
