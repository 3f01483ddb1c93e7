// Sparse inference for spiking networks: weights that are zero cost nothing, spikes stay packed in bits.
//
// A sparse convolution handles kTile output positions and all time steps at once. The inputs that each kernel tap sees
// are first copied into a tile, [column][kTile] words with column = (channel, tap), which is where padding, stride and
// the edges of the map are dealt with. Then every output channel runs through its kept weights, two at a time: the
// spikes of the two inputs form a two-bit index per position and step, and one table lookup gives the sum of the two
// weights that fire. The sums stay in registers until the neuron has run over T; only its packed spikes are stored.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "engine_simd.h"

namespace engine {

constexpr int kMaxBlock = 6;   // 2 * 6 accumulators, a table and an index fill 16 vector registers
constexpr int kSlack = 128;    // bytes readable past the end of every buffer, for whole-vector copies
using Word = uint16_t;

int block_steps(int64_t T) {
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
  int filled;                       // positions in use, the rest is padding of the last tile
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
ENGINE_INLINE void gather(const E* from, const Segment* s, int n, E* to) {
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
ENGINE_INLINE void gather_strided(const Word* from, const Segment* s, int n, int64_t stride, Word* to) {
  if (stride == 2 && n < kTile)  // the even ones of twice as many: the low halves of 32-bit lanes
    for (int i = 0; i < n; ++i)
      store(to + s[i].lane, __builtin_convertvector(load<Wide>(from + s[i].offset), Shorts));
  else if (stride == 1)
    gather(from, s, n, to);
  else
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < s[i].length; ++j) to[s[i].lane + j] = from[s[i].offset + j * stride];
}
ENGINE_INLINE void gather_strided(const float* from, const Segment* s, int n, int64_t stride, float* to) {
  if (stride == 1) return gather(from, s, n, to);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < s[i].length; ++j) to[s[i].lane + j] = from[s[i].offset + j * stride];
}
template <class E>
ENGINE_INLINE void scatter(const E* from, const Segment* s, int n, E* to) {
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
ENGINE_INLINE Ints fire(const SpNeuron& neuron, int c, int steps, const Floats* even, const Floats* odd, Membrane& v) {
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
      : op(o), in(view(b, o.in, T_, chunk, first, images)), spikes(view(b, o.spikes, T_, chunk, first, images)),
        real(view(b, o.real, T_, chunk, first, images)), residual(view(b, o.residual, T_, chunk, first, images)), T(T_),
        n(std::min(chunk, images - first)),
        block(block_steps(T_)), blocks(int((T_ + block - 1) / block)),
        columns(int64_t(in.channels) * o.kernel_h * o.kernel_w) {}
  int64_t positions() const { return n * op.height * op.width; }
  int64_t tiles() const { return (positions() + kTile - 1) / kTile; }

  Tile tile(int64_t index) const {
    Tile t;
    const int64_t start = index * kTile;
    t.filled = int(std::min<int64_t>(kTile, positions() - start));
    const auto plain = [](const View& v, int64_t i, int64_t y, int64_t x) { return v.at(i, y, x); };
    t.n_in = segments(in, start, t.filled, op.height, op.width, t.in, [&](const View& v, int64_t i, int64_t y, int64_t x) {
      return v.at(i, y * op.stride_h - op.pad_h, x * op.stride_w - op.pad_w);
    }, op.stride_w);
    if (op.spikes >= 0) t.n_out = segments(spikes, start, t.filled, op.height, op.width, t.out, plain);
    if (op.real >= 0) t.n_real = segments(real, start, t.filled, op.height, op.width, t.real, plain);
    if (op.residual >= 0) t.n_other = segments(residual, start, t.filled, op.height, op.width, t.other, plain);
    return t;
  }
};

// Reads one time step of one channel as floats, even and odd positions.
ENGINE_INLINE void read_step(const View& v, const Segment* s, int n, int64_t c, int64_t t, int block, Floats& even,
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
ENGINE_INLINE void finish(const Job& job, const Tile& tile, int c, int k, Floats* even, Floats* odd, Membrane& v) {
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
      scatter(plain, tile.real, tile.n_real, (float*)job.real.data + c * job.real.channel + (int64_t(k) * B + t) * job.real.step);
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
ENGINE_INLINE float first_sum(const SpOp& op, int c) { return op.scale ? 0.f : op.bias[c]; }
template <int B>
ENGINE_INLINE void begin_sums(float bias, const float* start, Floats* even, Floats* odd) {
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) {
    even[t] = start ? load<Floats>(start + t * kTile) : splat(bias);
    odd[t] = start ? load<Floats>(start + t * kTile + kLanes) : splat(bias);
  }
}
template <int B>
ENGINE_INLINE void end_sums(const SpOp& op, int c, Floats* even, Floats* odd) {
  if (!op.scale) return;
  const Floats scale = splat(op.scale[c]), bias = splat(op.bias[c]);
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
}

ENGINE_INLINE Membrane rest(const SpOp& op, int c) {
  const Floats start = splat(op.spikes >= 0 ? op.neuron.start[c] : 0.f);
  return {start, start};
}

// Adds the kept weights of one output channel to the sums of S steps. A function of its own: inlined into the kernels
// below, which have many more live values, g++ keeps the sums in memory instead of registers.
template <int S>
__attribute__((noinline)) void look_up(const SpPair* pair, const SpPair* end, const Word* base, Floats* even_sums,
                                       Floats* odd_sums) {
  Floats even[S], odd[S];
#pragma GCC unroll 8
  for (int t = 0; t < S; ++t) even[t] = even_sums[t], odd[t] = odd_sums[t];
  for (; pair < end; ++pair) {
    const Table table(pair->a, pair->b);
    const Ints index = (Ints)(load<Shorts>(base + int64_t(pair->second) * kTile) << 1) |
                       load<Ints>(base + int64_t(pair->first) * kTile);
#pragma GCC unroll 8
    for (int t = 0; t < S; ++t) {
      even[t] += table.pick(index >> (2 * t));
      odd[t] += table.pick(index >> (2 * t + 16));
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < S; ++t) even_sums[t] = even[t], odd_sums[t] = odd[t];
}

// Adds the columns that are read event by event: one that is silent at every position and step costs a glance.
template <int S>
void add_events(const SpOp& op, const Word* base, int64_t columns, int from, int to, float* sums) {
  for (int64_t column = op.first_event; column < columns; ++column) {
    const Ints index = load<Ints>(base + column * kTile);
    uint64_t any = 0;
    for (int i = 0; i < kTile / 4; ++i) any |= load<uint64_t>(base + column * kTile + 4 * i);
    if (!any) continue;
    const int32_t* range = op.event_starts + (column - op.first_event);
    for (const SpEvent *event = op.events + range[0], *end = op.events + range[1]; event < end; ++event) {
      if (int(event->row) < from || int(event->row) >= to) continue;
      const Table table(event->value, 2 * event->value);
      float* sum = sums + int64_t(event->row - from) * S * kTile;
#pragma GCC unroll 8
      for (int t = 0; t < S; ++t) {
        store(sum + t * kTile, load<Floats>(sum + t * kTile) + table.pick(index >> (2 * t)));
        store(sum + t * kTile + kLanes, load<Floats>(sum + t * kTile + kLanes) + table.pick(index >> (2 * t + 16)));
      }
    }
  }
}

// Where the last tile (or a small map) fills at most half of the lanes, later time steps move into the idle ones:
// lane = part * filled + position, with S steps in each part.
template <int S>
__attribute__((noinline)) void look_up_folded(const SpPair* pair, const SpPair* end, const Word* base, int filled, int steps, float bias,
                    const float* start, float* plain) {
  Floats even[S], odd[S];
  begin_sums<S>(bias, start, even, odd);
  look_up<S>(pair, end, base, even, odd);
  float sums[S][kTile];
  for (int t = 0; t < S; ++t) join(even[t], odd[t], sums[t]);
  for (int t = 0; t < steps; ++t)
    for (int p = 0; p < filled; ++p) plain[t * kTile + p] = sums[t % S][t / S * filled + p];
}

template <int B>
void conv_lookup(const Job& job, const Tile& tile, int from, int to, char* scratch) {
  const SpOp& op = job.op;
  Word* words = (Word*)scratch;
  const int64_t plane = (job.columns + 1) * kTile;  // one more column: all zero, the partner of an odd weight
  const int parts = std::min(B, kTile / tile.filled);
  const int steps = (B + parts - 1) / parts;  // per part
  for (int k = 0; k < job.blocks; ++k) {
    Word* to_column = words + k * plane;
    const auto columns = [&](auto segments) {  // a constant where it is 1 or 2, so that copying is a load and a store
      const int n = decltype(segments)::value ? decltype(segments)::value : tile.n_in;
      for (int c = 0; c < job.in.channels; ++c)
        for (int y = 0; y < op.kernel_h; ++y) {
          const Word* row = (const Word*)job.in.data + c * job.in.channel + k * job.in.step + y * op.dilation_h * job.in.row;
          for (int x = 0; x < op.kernel_w; ++x, to_column += kTile)
            if (decltype(segments)::value)
              gather(row + x * op.dilation_w, tile.in, n, to_column);
            else
              gather_strided(row + x * op.dilation_w, tile.in, n, op.stride_w, to_column);
        }
    };
    if (op.stride_w == 1 && tile.n_in == 1) columns(std::integral_constant<int, 1>{});
    else if (op.stride_w == 1 && tile.n_in == 2) columns(std::integral_constant<int, 2>{});
    else columns(std::integral_constant<int, 0>{});
    for (int part = 1; part * steps < B; ++part)
      for (Word* column = words + k * plane; column < to_column; column += kTile)
        for (int p = 0; p < tile.filled; ++p)
          column[part * tile.filled + p] = column[p] >> (2 * steps * part);
    std::memset(to_column, 0, sizeof(Word) * kTile);
  }
  float* sums = nullptr;  // [block of time][channel][step][kTile], if there are events
  const int64_t per_block = int64_t(to - from) * steps * kTile;
  if (op.events) {
    sums = (float*)(words + job.blocks * plane);
    for (int k = 0; k < job.blocks; ++k) {
      float* block = sums + k * per_block;
      for (int c = from; c < to; ++c)
        std::fill_n(block + int64_t(c - from) * steps * kTile, steps * kTile, first_sum(op, c));
      const Word* base = words + k * plane;
      if (steps == B) add_events<B>(op, base, job.columns, from, to, block);
      else if (steps == 1) add_events<1>(op, base, job.columns, from, to, block);
      else if (steps == 2) add_events<2>(op, base, job.columns, from, to, block);
      else add_events<3>(op, base, job.columns, from, to, block);
    }
  }
  for (int c = from; c < to; ++c) {
    Membrane v = rest(op, c);
    const SpPair* const begin = op.pairs + op.starts[c];
    const SpPair* const end = op.pairs + op.starts[c + 1];
    for (int k = 0; k < job.blocks; ++k) {
      const Word* base = words + k * plane;
      const float* start = sums ? sums + k * per_block + int64_t(c - from) * steps * kTile : nullptr;
      Floats even[B], odd[B];
      if (steps < B) {
        float plain[B * kTile] = {};
        const float bias = first_sum(op, c);
        if (steps == 1) look_up_folded<1>(begin, end, base, tile.filled, B, bias, start, plain);
        if (steps == 2) look_up_folded<2>(begin, end, base, tile.filled, B, bias, start, plain);
        if (steps == 3) look_up_folded<3>(begin, end, base, tile.filled, B, bias, start, plain);
#pragma GCC unroll 8
        for (int t = 0; t < B; ++t) split(plain + t * kTile, even[t], odd[t]);
      } else {
        begin_sums<B>(first_sum(op, c), start, even, odd);
        look_up<B>(begin, end, base, even, odd);
      }
      end_sums<B>(op, c, even, odd);
      finish<B>(job, tile, c, k, even, odd, v);
    }
  }
}

template <int B>
void conv_real(const Job& job, const Tile& tile, int from, int to, char* scratch) {
  const SpOp& op = job.op;
  const int64_t slot = int64_t(B) * kTile;  // floats per column and block of time
  for (int k = 0; k < job.blocks; ++k) {
    float* to_column = (float*)scratch + k * job.columns * slot;
    const int64_t steps = std::min<int64_t>(B, job.T - int64_t(k) * B);
    for (int c = 0; c < job.in.channels; ++c)
      for (int y = 0; y < op.kernel_h; ++y)
        for (int x = 0; x < op.kernel_w; ++x, to_column += slot)
          for (int64_t t = 0; t < B; ++t) {
            float plain[2 * kTile] = {};
            if (t < steps)
              gather_strided((const float*)job.in.data + c * job.in.channel + (int64_t(k) * B + t) * job.in.step +
                                 y * op.dilation_h * job.in.row + x * op.dilation_w,
                             tile.in, tile.n_in, op.stride_w, plain);
            Floats even, odd;
            split(plain, even, odd);
            store(to_column + t * kTile, even);
            store(to_column + t * kTile + kLanes, odd);
          }
  }
  for (int c = from; c < to; ++c) {
    Membrane v = rest(op, c);
    for (int k = 0; k < job.blocks; ++k) {
      const float* base = (const float*)scratch + k * job.columns * slot;
      Floats even[B], odd[B];
      begin_sums<B>(first_sum(op, c), nullptr, even, odd);
      for (const SpWeight *w = op.weights + op.starts[c], *end = op.weights + op.starts[c + 1]; w < end; ++w) {
        const Floats value = splat(w->value);
        const float* x = base + w->column * slot;
#pragma GCC unroll 8
        for (int t = 0; t < B; ++t) {
          even[t] = multiply_add(value, load<Floats>(x + t * kTile), even[t]);
          odd[t] = multiply_add(value, load<Floats>(x + t * kTile + kLanes), odd[t]);
        }
      }
      end_sums<B>(op, c, even, odd);
      finish<B>(job, tile, c, k, even, odd, v);
    }
  }
}

// scale * x + bias, then residual, real output, neuron: also how tensors of PyTorch enter and leave.
template <int B>
void pointwise(const Job& job, const Tile& tile, int from, int to) {
  const SpOp& op = job.op;
  for (int c = from; c < to; ++c) {
    Membrane v = rest(op, c);
    const Floats scale = splat(op.scale[c]), bias = splat(op.bias[c]);
    for (int k = 0; k < job.blocks; ++k) {
      Floats even[B] = {}, odd[B] = {};
      const int64_t steps = std::min<int64_t>(B, job.T - int64_t(k) * B);
#pragma GCC unroll 8
      for (int64_t t = 0; t < B; ++t) {
        if (t >= steps) break;
        if (t == 0 || job.in.step) {
          read_step(job.in, tile.in, tile.n_in, op.map ? op.map[c] : c, int64_t(k) * B + t, B, even[t], odd[t]);
          even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
        } else {
          even[t] = even[0], odd[t] = odd[0];
        }
      }
      finish<B>(job, tile, c, k, even, odd, v);
    }
  }
}

// Pooling of packed spikes. The maximum is a bitwise or. A sum up to 15 is counted bit by bit, for all steps of a word
// at once, and stays packed as two planes (sum & 3 in channel c, sum >> 2 in channel c + C). Other averages become real.
void pool_words(const Job& job, const Tile& tile, int from, int to) {
  const SpOp& op = job.op;
  Word taken[2 * kTile];
  for (int c = from; c < to; ++c)
    for (int k = 0; k < job.blocks; ++k) {
      const Word* source = (const Word*)job.in.data + c * job.in.channel + k * job.in.step;
      Ints any{}, ones{}, twos{}, fours{}, eights{};
      Ints even[kMaxBlock] = {}, odd[kMaxBlock] = {};
      for (int y = 0; y < op.kernel_h; ++y)
        for (int x = 0; x < op.kernel_w; ++x) {
          gather_strided(source + y * job.in.row + x, tile.in, tile.n_in, op.stride_w, taken);
          const Ints bits = load<Ints>(taken);
          if (op.pool_kind == SP_MAX) {
            any |= bits;
          } else if (op.pool_kind == SP_PLANES) {
            const Ints carry = ones & bits, carry2 = twos & carry;
            ones ^= bits, twos ^= carry, eights ^= fours & carry2, fours ^= carry2;
          } else {
            for (int t = 0; t < job.block; ++t)
              even[t] += (bits >> (2 * t)) & 3, odd[t] += (bits >> (2 * t + 16)) & 3;
          }
        }
      if (op.pool_kind == SP_AVERAGE) {
        const int64_t first = int64_t(k) * job.block, last = std::min<int64_t>(job.T, first + job.block);
        for (int64_t t = first; t < last; ++t) {
          float plain[kTile];
          const Floats scale = splat(op.scale[c]);
          join(__builtin_convertvector(even[t - first], Floats) * scale,
               __builtin_convertvector(odd[t - first], Floats) * scale, plain);
          scatter(plain, tile.real, tile.n_real, (float*)job.real.data + c * job.real.channel + t * job.real.step);
        }
        continue;
      }
      Word* out = (Word*)job.spikes.data + k * job.spikes.step;
      store(taken, op.pool_kind == SP_MAX ? any : ones | twos << 1);
      scatter(taken, tile.out, tile.n_out, out + c * job.spikes.channel);
      if (op.pool_kind == SP_PLANES) {
        store(taken, fours | eights << 1);
        scatter(taken, tile.out, tile.n_out, out + (c + int64_t(op.channels)) * job.spikes.channel);
      }
    }
}

void pool_real(const Job& job, int c) {
  const SpOp& op = job.op;
  for (int64_t t = 0; t < job.T; ++t)
    for (int64_t i = 0; i < job.n; ++i)
      for (int64_t y = 0; y < op.height; ++y)
        for (int64_t x = 0; x < op.width; ++x) {
          const float* from = (const float*)job.in.data + c * job.in.channel + t * job.in.step;
          float sum = 0, top = -__builtin_inff();
          for (int64_t dy = 0; dy < op.kernel_h; ++dy)
            for (int64_t dx = 0; dx < op.kernel_w; ++dx) {
              const int64_t iy = y * op.stride_h - op.pad_h + dy, ix = x * op.stride_w - op.pad_w + dx;
              if (iy < 0 || iy >= job.in.height || ix < 0 || ix >= job.in.width) continue;
              const float value = from[job.in.at(i, iy, ix)];
              sum += value, top = std::max(top, value);
            }
          ((float*)job.real.data)[c * job.real.channel + t * job.real.step + job.real.at(i, y, x)] =
              op.pool_kind == SP_MAX ? top : sum * op.scale[c];
        }
}

// Work is cut into items that any thread may take: tiles, and ranges of output channels where tiles are few.
struct Plan {
  int64_t tiles, ranges;
  Plan(const Job& job, int threads) {
    tiles = job.op.code == SP_POOL && job.in.kind != SP_WORDS ? 1 : job.tiles();
    const int64_t wanted = threads > 1 ? 2 * threads : 1;
    ranges = std::min<int64_t>(job.op.channels, std::max<int64_t>(1, (wanted + tiles - 1) / tiles));
  }
};

void work(const Job& job, const Plan& plan, int64_t item, char* scratch) {
  const int64_t size = (job.op.channels + plan.ranges - 1) / plan.ranges;
  const int from = int(item % plan.ranges * size), to = int(std::min<int64_t>(job.op.channels, from + size));
  if (job.op.code == SP_POOL && job.in.kind != SP_WORDS) {
    for (int c = from; c < to; ++c) pool_real(job, c);
    return;
  }
  const Tile tile = job.tile(item / plan.ranges);
  if (job.op.code == SP_POOL) return pool_words(job, tile, from, to);
  const auto run = [&](auto steps) {
    constexpr int B = decltype(steps)::value;
    if (job.op.code == SP_CONV_LOOKUP) conv_lookup<B>(job, tile, from, to, scratch);
    if (job.op.code == SP_CONV_REAL) conv_real<B>(job, tile, from, to, scratch);
    if (job.op.code == SP_POINTWISE) pointwise<B>(job, tile, from, to);
  };
  switch (job.block) {
    case 1: run(std::integral_constant<int, 1>{}); break;
    case 2: run(std::integral_constant<int, 2>{}); break;
    case 3: run(std::integral_constant<int, 3>{}); break;
    case 4: run(std::integral_constant<int, 4>{}); break;
    case 5: run(std::integral_constant<int, 5>{}); break;
    default: run(std::integral_constant<int, 6>{}); break;
  }
}

int64_t scratch_bytes(const Job& job) {
  const int64_t steps = int64_t(job.blocks) * job.block * kTile * int64_t(sizeof(float));  // of one channel or column
  if (job.op.code == SP_CONV_REAL) return job.columns * steps + kSlack;
  if (job.op.code != SP_CONV_LOOKUP) return kSlack;
  const int64_t words = job.blocks * (job.columns + 1) * kTile * int64_t(sizeof(Word));
  return words + (job.op.events ? job.op.channels * steps : 0) + kSlack;
}

// Threads of one call meet here between operations. They sleep while waiting: on a busy machine a spinning thread
// takes the core from the one it waits for.
class Meeting {
 public:
  // Threads that were started early wait here until it is known how many could be started.
  void arrive() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_.wait(lock, [&] { return members_ > 0; });
  }
  void begin(int members) {
    std::unique_lock<std::mutex> lock(mutex_);
    members_ = members;
    all_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == members_) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  int members_ = 0;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

int run(const SpOp* ops, int n_ops, const SpBuffer* buffers, int64_t T, int64_t images, int64_t chunk, int threads) {
  const int64_t chunks = (images + chunk - 1) / chunk;
  int64_t bytes = kSlack;
  for (int i = 0; i < n_ops; ++i) bytes = std::max(bytes, scratch_bytes(Job(ops[i], buffers, T, chunk, 0, images)));
  bytes = (bytes + 63) / 64 * 64;
  std::unique_ptr<char, void (*)(void*)> scratch((char*)std::aligned_alloc(64, bytes * threads), std::free);
  if (!scratch) return 1;
  std::vector<std::atomic<int64_t>> next(chunks * n_ops);
  Meeting meeting;
  const auto member = [&](int id) {
    for (int64_t first = 0, round = 0; first < images; first += chunk)
      for (int i = 0; i < n_ops; ++i, ++round) {
        const Job job(ops[i], buffers, T, chunk, first, images);
        const Plan plan(job, threads);
        for (int64_t item; (item = next[round].fetch_add(1)) < plan.tiles * plan.ranges;)
          work(job, plan, item, scratch.get() + id * bytes);
        if (threads > 1) meeting.wait();
      }
  };
  std::vector<std::thread> others;
  try {
    others.reserve(threads);
    for (int id = 1; id < threads; ++id)
      others.emplace_back([&member, &meeting, id] {
        meeting.arrive();
        member(id);
      });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that started do all the work.
  }
  meeting.begin(int(others.size()) + 1);
  member(0);
  for (auto& thread : others) thread.join();
  return 0;
}

}  // namespace engine

extern "C" {

int32_t sp_lanes(void) { return engine::kLanes; }

int32_t sp_block(int32_t T) { return engine::block_steps(T); }

int64_t sp_bytes(const SpBuffer* buffer, int64_t T, int64_t images) {
  const engine::View view(*buffer, T, images, 0, images);
  return view.channel * buffer->channels * (buffer->kind == SP_WORDS ? 2 : 4) + engine::kSlack;
}

int32_t sp_run(const SpOp* ops, int32_t n_ops, const SpBuffer* buffers, int64_t T, int64_t images, int64_t chunk,
               int32_t threads) {
  try {
    return engine::run(ops, n_ops, buffers, T, images, chunk, threads < 1 ? 1 : threads);
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
}
