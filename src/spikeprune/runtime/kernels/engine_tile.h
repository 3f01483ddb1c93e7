// What every operation of the engine shares: how values lie in buffers, tiles of output positions, the neuron.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine.h"
#include "engine_simd.h"

namespace engine {

constexpr int kMaxBlock = 6;  // 2 * 6 accumulators, a table and an index fill 16 vector registers
constexpr int kSlack = 128;   // bytes readable past the end of every buffer, for whole-vector copies
using Word = uint16_t;

inline int block_steps(int64_t T) {
  const int64_t blocks = (T + kMaxBlock - 1) / kMaxBlock;
  return int((T + blocks - 1) / blocks);
}

// How one chunk of images lies in a buffer.
struct View {
  char* data;
  int kind, channels, height, width, pad;
  int64_t pixel = 1, row, image, step, channel;  // strides in elements; `step`: a time step, of words a block of them
  // n: images that the buffer has room for; first: the chunk's first image, of `images`, in an external tensor.
  View(const SpBuffer& b, int64_t T, int64_t n, int64_t first, int64_t images)
      : data((char*)b.data), kind(b.kind), channels(b.channels), height(b.height), width(b.width), pad(b.pad) {
    row = width + 2 * pad;
    image = row * (height + 2 * pad);
    if (kind == SP_WORDS || kind == SP_REAL) {
      step = image * n;
      const int block = block_steps(T);
      channel = step * (kind == SP_WORDS ? (T + block - 1) / block : T);
    } else {
      const int64_t plane = image;
      channel = plane;
      image = plane * channels;
      step = kind == SP_STATIC ? 0 : image * images;
      data += sizeof(float) * image * first;
      if (b.channels_last) pixel = channels, row *= channels, channel = 1;
    }
  }
  // Offset of output position (image, y, x) inside one channel and step.
  int64_t at(int64_t i, int64_t y, int64_t x) const { return i * image + (y + pad) * row + (x + pad) * pixel; }
};

// Neighbouring output positions that lie `stride` elements apart in a buffer (1 in all but a strided input).
struct Segment {
  int lane, length;
  int64_t offset;
};

struct Tile {
  int filled;  // positions in use, the rest is padding of the last tile
  int n_in = 0, n_out = 0, n_real = 0, n_other = 0;
  Segment in[kTile], out[kTile], real[kTile], other[kTile];  // of the input, the spikes, the real output, the residual
};

template <class At>
int segments(const View& view, int64_t start, int filled, int64_t height, int64_t width, Segment* found, At at,
             int64_t stride = 1) {
  int n = 0;
  for (int lane = 0; lane < filled; ++lane) {
    const int64_t p = start + lane, x = p % width, y = p / width % height, i = p / (width * height);
    const int64_t offset = at(view, i, y, x);
    if (n && offset == found[n - 1].offset + found[n - 1].length * stride)
      ++found[n - 1].length;
    else
      found[n++] = {lane, 1, offset};
  }
  return n;
}

// Copies the segments of one channel and step to kTile consecutive elements. A segment is copied as whole vectors; what
// that writes too much is overwritten by the next segment or the next column.
template <class E>
LANES_INLINE void gather(const E* from, const Segment* s, int n, E* to) {
  constexpr int kPerVector = int(sizeof(Floats) / sizeof(E));
  if (n == kTile) {  // a map one position wide
    for (int i = 0; i < n; ++i) to[i] = from[s[i].offset];
    return;
  }
  for (int i = 0; i < n; ++i) {
    store(to + s[i].lane, load<Floats>(from + s[i].offset));
    if (kPerVector < kTile && s[i].length > kPerVector)
      store(to + s[i].lane + kPerVector, load<Floats>(from + s[i].offset + kPerVector));
  }
}
LANES_INLINE void gather_strided(const Word* from, const Segment* s, int n, int64_t stride, Word* to) {
  if (stride == 2 && n < kTile)  // the even ones of twice as many: the low halves of 32-bit lanes
    for (int i = 0; i < n; ++i) store(to + s[i].lane, __builtin_convertvector(load<Wide>(from + s[i].offset), Shorts));
  else if (stride == 1)
    gather(from, s, n, to);
  else
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < s[i].length; ++j) to[s[i].lane + j] = from[s[i].offset + j * stride];
}
LANES_INLINE void gather_strided(const float* from, const Segment* s, int n, int64_t stride, float* to) {
  if (stride == 1) return gather(from, s, n, to);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < s[i].length; ++j) to[s[i].lane + j] = from[s[i].offset + j * stride];
}
template <class E>
LANES_INLINE void scatter(const E* from, const Segment* s, int n, E* to) {
  for (int i = 0; i < n; ++i) {
    const E* source = from + s[i].lane;
    E* target = to + s[i].offset;
    int left = s[i].length;
    if (left == kTile) {  // rows of the usual maps are powers of two
      std::memcpy(target, source, sizeof(E) * kTile);
      continue;
    }
    for (; left >= 4; left -= 4, source += 4, target += 4) std::memcpy(target, source, sizeof(E) * 4);
    for (; left > 0; --left) *target++ = *source++;
  }
}

struct Membrane {
  Floats even, odd;
};

// The neuron over up to B steps; returns the packed spikes of the tile.
template <int B, bool Soft>
LANES_INLINE Ints fire(const SpNeuron& neuron, int c, int steps, const Floats* even, const Floats* odd, Membrane& v) {
  const Floats decay = splat(neuron.decay[c]), threshold = splat(neuron.threshold[c]), reset = splat(neuron.reset[c]);
  Ints low{}, high{};
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) {
    const Floats h = decay * v.even + even[t], g = decay * v.odd + odd[t];
    const Ints a = h >= threshold, b = g >= threshold;
    v.even = a ? (Soft ? h + reset : reset) : h;
    v.odd = b ? (Soft ? g + reset : reset) : g;
    low |= a & (1 << 2 * t);
    high |= b & (1 << 2 * t);
  }
  const int32_t valid = (1 << 2 * steps) - 1;  // the last block of time may be shorter
  return (low & valid) | ((high & valid) << 16);
}

// One kernel call on one chunk of images: everything that does not depend on the tile.
struct Job {
  const SpOp& op;
  View in, spikes, real, residual;
  int64_t T, n;
  int block, blocks;
  int64_t columns;  // per block of time

  static View view(const SpBuffer* buffers, int index, int64_t T, int64_t n, int64_t first, int64_t images) {
    static const SpBuffer none{nullptr, SP_WORDS, 0, 0, 0, 0, 0};
    return View(index < 0 ? none : buffers[index], T, n, first, images);
  }
  Job(const SpOp& o, const SpBuffer* b, int64_t T_, int64_t chunk, int64_t first, int64_t images)
      : op(o),
        in(view(b, o.in, T_, chunk, first, images)),
        spikes(view(b, o.spikes, T_, chunk, first, images)),
        real(view(b, o.real, T_, chunk, first, images)),
        residual(view(b, o.residual, T_, chunk, first, images)),
        T(T_),
        n(std::min(chunk, images - first)),
        block(block_steps(T_)),
        blocks(int((T_ + block - 1) / block)),
        columns(int64_t(in.channels) * o.kernel_h * o.kernel_w) {}
  int64_t positions() const { return n * op.height * op.width; }
  int64_t tiles() const { return (positions() + kTile - 1) / kTile; }

  Tile tile(int64_t index) const {
    Tile t;
    const int64_t start = index * kTile;
    t.filled = int(std::min<int64_t>(kTile, positions() - start));
    const auto plain = [](const View& v, int64_t i, int64_t y, int64_t x) { return v.at(i, y, x); };
    t.n_in = segments(
        in, start, t.filled, op.height, op.width, t.in,
        [&](const View& v, int64_t i, int64_t y, int64_t x) {
          return v.at(i, y * op.stride_h - op.pad_h, x * op.stride_w - op.pad_w);
        },
        op.stride_w);
    if (op.spikes >= 0) t.n_out = segments(spikes, start, t.filled, op.height, op.width, t.out, plain);
    if (op.real >= 0) t.n_real = segments(real, start, t.filled, op.height, op.width, t.real, plain);
    if (op.residual >= 0) t.n_other = segments(residual, start, t.filled, op.height, op.width, t.other, plain);
    return t;
  }
};

// Reads one time step of one channel as floats, even and odd positions.
LANES_INLINE void read_step(const View& v, const Segment* s, int n, int64_t c, int64_t t, int block, Floats& even,
                            Floats& odd) {
  float plain[2 * kTile];
  if (v.kind == SP_WORDS) {
    Word words[2 * kTile];
    gather((const Word*)v.data + c * v.channel + t / block * v.step, s, n, words);
    const Ints x = load<Ints>(words) >> int(2 * (t % block));
    even = __builtin_convertvector(x & 3, Floats);
    odd = __builtin_convertvector((x >> 16) & 3, Floats);
    return;
  }
  const float* from = (const float*)v.data + c * v.channel + t * v.step;
  if (v.kind == SP_REAL)
    gather(from, s, n, plain);
  else  // nothing may be read past the end of somebody else's tensor
    for (int i = 0; i < n; ++i) std::memcpy(plain + s[i].lane, from + s[i].offset, sizeof(float) * s[i].length);
  split(plain, even, odd);
}

// What follows the sums of one output channel and block of time: residual, real output, neuron, packed spikes.
template <int B>
LANES_INLINE void finish(const Job& job, const Tile& tile, int c, int k, Floats* even, Floats* odd, Membrane& v) {
  const SpOp& op = job.op;
  const int steps = int(std::min<int64_t>(B, job.T - int64_t(k) * B));
  if (op.residual >= 0)
#pragma GCC unroll 8
    for (int t = 0; t < B; ++t) {  // constant bounds and indices keep the sums in registers
      if (t >= steps) break;
      Floats e, o;
      read_step(job.residual, tile.other, tile.n_other, c, int64_t(k) * B + t, B, e, o);
      even[t] += e, odd[t] += o;
    }
  if (op.real >= 0) {
#pragma GCC unroll 8
    for (int t = 0; t < B; ++t) {
      if (t >= steps) break;
      float plain[kTile];
      join(even[t], odd[t], plain);
      scatter(plain, tile.real, tile.n_real,
              (float*)job.real.data + c * job.real.channel + (int64_t(k) * B + t) * job.real.step);
    }
  }
  if (op.spikes >= 0) {
    if (op.post_scale) {
      const Floats scale = splat(op.post_scale[c]), bias = splat(op.post_bias[c]);
#pragma GCC unroll 8
      for (int t = 0; t < B; ++t) even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
    }
    Word words[kTile];
    if (op.neuron.soft)
      store(words, fire<B, true>(op.neuron, c, steps, even, odd, v));
    else
      store(words, fire<B, false>(op.neuron, c, steps, even, odd, v));
    scatter(words, tile.out, tile.n_out, (Word*)job.spikes.data + c * job.spikes.channel + k * job.spikes.step);
  }
}

// A conv's sums start at the bias (at 0 if they are scaled first), or at what the events have added up.
LANES_INLINE float first_sum(const SpOp& op, int c) { return op.scale ? 0.f : op.bias[c]; }
template <int B>
LANES_INLINE void begin_sums(float bias, const float* start, Floats* even, Floats* odd) {
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) {
    even[t] = start ? load<Floats>(start + t * kTile) : splat(bias);
    odd[t] = start ? load<Floats>(start + t * kTile + kLanes) : splat(bias);
  }
}
template <int B>
LANES_INLINE void end_sums(const SpOp& op, int c, Floats* even, Floats* odd) {
  if (!op.scale) return;
  const Floats scale = splat(op.scale[c]), bias = splat(op.bias[c]);
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
}

LANES_INLINE Membrane rest(const SpOp& op, int c) {
  const Floats start = splat(op.spikes >= 0 ? op.neuron.start[c] : 0.f);
  return {start, start};
}

// Calls run(steps) with the number of steps in a word as a constant, so that the loops over them unroll.
template <class Run>
void by_block(int block, const Run& run) {
  switch (block) {
    case 1:
      return run(std::integral_constant<int, 1>{});
    case 2:
      return run(std::integral_constant<int, 2>{});
    case 3:
      return run(std::integral_constant<int, 3>{});
    case 4:
      return run(std::integral_constant<int, 4>{});
    case 5:
      return run(std::integral_constant<int, 5>{});
    default:
      return run(std::integral_constant<int, kMaxBlock>{});
  }
}

// Bytes that all time steps of one channel or column of a tile take as floats.
inline int64_t step_bytes(const Job& job) { return int64_t(job.blocks) * job.block * kTile * int64_t(sizeof(float)); }

// One operation of the engine. A file engine_NAME.cpp defines it and registers it by a static `Register`; Python asks
// for its number by its name (`sp_code`), so the number stands nowhere else.
struct Kernel {
  const char* name;
  int64_t (*tiles)(const Job& job);    // items of work that do not depend on each other, per channel
  int64_t (*scratch)(const Job& job);  // bytes that one thread needs beside the buffers
  // Computes output channels from .. to - 1 of one tile.
  void (*work)(const Job& job, int64_t tile, int from, int to, char* scratch);
};

struct Register {
  explicit Register(const Kernel& kernel);
};

inline int64_t position_tiles(const Job& job) { return job.tiles(); }
inline int64_t no_scratch(const Job&) { return kSlack; }

}  // namespace engine
