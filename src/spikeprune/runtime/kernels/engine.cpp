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
  int64_t row, image, step, channel;  // strides in elements; `step` is one time step, or one block of time for words
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
    }
  }
  // Offset of output position (image, y, x) inside one channel and step.
  int64_t at(int64_t i, int64_t y, int64_t x) const { return i * image + (y + pad) * row + x + pad; }
};

// Neighbouring output positions that are also neighbours in a buffer.
struct Segment {
  int lane, length;
  int64_t offset;
};

struct Tile {
  int filled;                       // positions in use, the rest is padding of the last tile
  int n_in = 0, n_out = 0, n_other = 0;
  Segment in[kTile], out[kTile], other[kTile];
};

template <class At>
int segments(const View& view, int64_t start, int filled, int64_t height, int64_t width, Segment* found, At at) {
  int n = 0;
  for (int lane = 0; lane < filled; ++lane) {
    const int64_t p = start + lane, x = p % width, y = p / width % height, i = p / (width * height);
    const int64_t offset = at(view, i, y, x);
    if (n && offset == found[n - 1].offset + found[n - 1].length)
      ++found[n - 1].length;
    else
      found[n++] = {lane, 1, offset};
  }
  return n;
}

// Copies the segments of one channel and step to kTile consecutive elements. A segment is copied as a whole vector
// wherever that is cheaper; what it writes too much is overwritten by the next segment or the next column.
template <class E>
ENGINE_INLINE void gather(const E* from, const Segment* s, int n, E* to) {
  if (n == kTile) {
    for (int i = 0; i < n; ++i) to[i] = from[s[i].offset];
    return;
  }
  for (int i = 0; i < n; ++i)
    for (size_t done = 0; done < sizeof(E) * kTile; done += sizeof(Floats))
      if (int(done / sizeof(E)) < s[i].length)
        store(to + s[i].lane + done / sizeof(E), load<Floats>((const char*)(from + s[i].offset) + done));
}
template <class E>
ENGINE_INLINE void scatter(const E* from, const Segment* s, int n, E* to) {
  if (n == 1 && s[0].length == kTile) {
    std::memcpy(to + s[0].offset, from, sizeof(E) * kTile);
    return;
  }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < s[i].length; ++j) to[s[i].offset + j] = from[s[i].lane + j];
}

// Even and odd positions <-> kTile floats in order.
ENGINE_INLINE void split(const float* from, Floats& even, Floats& odd) {
  float e[kLanes], o[kLanes];
  for (int i = 0; i < kLanes; ++i) e[i] = from[2 * i], o[i] = from[2 * i + 1];
  even = load<Floats>(e), odd = load<Floats>(o);
}
ENGINE_INLINE void join(Floats even, Floats odd, float* to) {
  for (int i = 0; i < kLanes; ++i) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
}

struct Membrane {
  Floats even, odd;
};

// The neuron over up to B steps; returns the packed spikes of the tile.
template <int B>
ENGINE_INLINE Ints fire(const SpNeuron& neuron, int c, int steps, const Floats* even, const Floats* odd, Membrane& v) {
  const Floats decay = splat(neuron.decay[c]), threshold = splat(neuron.threshold[c]), reset = splat(neuron.reset[c]);
  const bool soft = neuron.soft, strict = neuron.strict;
  Ints low{}, high{};
#pragma GCC unroll 8
  for (int t = 0; t < B; ++t) {
    const Floats h = decay * v.even + even[t], g = decay * v.odd + odd[t];
    const Ints a = strict ? h > threshold : h >= threshold, b = strict ? g > threshold : g >= threshold;
    v.even = soft ? (a ? h - threshold : h) : (a ? reset : h);
    v.odd = soft ? (b ? g - threshold : g) : (b ? reset : g);
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
    static const SpBuffer none{nullptr, SP_WORDS, 0, 0, 0, 0};
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
      return i * v.image + (y * op.stride_h - op.pad_h + v.pad) * v.row + x * op.stride_w - op.pad_w + v.pad;
    });
    const View& out = op.spikes >= 0 ? spikes : real;
    t.n_out = segments(out, start, t.filled, op.height, op.width, t.out, plain);
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
  gather((const float*)v.data + c * v.channel + t * v.step, s, n, plain);
  split(plain, even, odd);
}

// What follows the sums of one output channel and block of time: residual, real output, neuron, packed spikes.
template <int B>
ENGINE_INLINE void finish(const Job& job, const Tile& tile, int c, int k, Floats* even, Floats* odd, Membrane& v) {
  const SpOp& op = job.op;
  const int steps = int(std::min<int64_t>(B, job.T - int64_t(k) * B));
  if (op.residual >= 0)
    for (int t = 0; t < steps; ++t) {
      Floats e, o;
      read_step(job.residual, tile.other, tile.n_other, c, int64_t(k) * B + t, B, e, o);
      even[t] += e, odd[t] += o;
    }
  if (op.real >= 0) {
    Segment places[kTile];  // the real output may lie in another buffer with other padding than the spikes
    int n = tile.n_out;
    const Segment* out = tile.out;
    if (op.spikes >= 0) {
      for (n = 0; n < tile.n_out; ++n) {
        places[n] = tile.out[n];
        const int64_t image = places[n].offset / job.spikes.image, rest = places[n].offset % job.spikes.image;
        places[n].offset = job.real.at(image, rest / job.spikes.row - job.spikes.pad, rest % job.spikes.row - job.spikes.pad);
      }
      out = places;
    }
    for (int t = 0; t < steps; ++t) {
      float plain[kTile];
      join(even[t], odd[t], plain);
      scatter(plain, out, n, (float*)job.real.data + c * job.real.channel + (int64_t(k) * B + t) * job.real.step);
    }
  }
  if (op.spikes >= 0) {
    if (op.post_scale) {
      const Floats scale = splat(op.post_scale[c]), bias = splat(op.post_bias[c]);
#pragma GCC unroll 8
      for (int t = 0; t < B; ++t) even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
    }
    Word words[kTile];
    store(words, fire<B>(op.neuron, c, steps, even, odd, v));
    scatter(words, tile.out, tile.n_out, (Word*)job.spikes.data + c * job.spikes.channel + k * job.spikes.step);
  }
}

ENGINE_INLINE Membrane rest(const SpOp& op, int c) {
  const Floats start = splat(op.spikes >= 0 ? op.neuron.start[c] : 0.f);
  return {start, start};
}

template <int B>
void conv_lookup(const Job& job, const Tile& tile, int from, int to, char* scratch) {
  const SpOp& op = job.op;
  Word* words = (Word*)scratch;
  const int64_t plane = (job.columns + 1) * kTile;  // one more column: all zero, the partner of an odd weight
  for (int k = 0; k < job.blocks; ++k) {
    Word* to_column = words + k * plane;
    for (int c = 0; c < job.in.channels; ++c)
      for (int y = 0; y < op.kernel_h; ++y)
        for (int x = 0; x < op.kernel_w; ++x, to_column += kTile)
          gather((const Word*)job.in.data + c * job.in.channel + k * job.in.step + y * op.dilation_h * job.in.row +
                     x * op.dilation_w,
                 tile.in, tile.n_in, to_column);
    std::memset(to_column, 0, sizeof(Word) * kTile);
  }
  for (int c = from; c < to; ++c) {
    Membrane v = rest(op, c);
    const SpPair* const begin = op.pairs + op.starts[c];
    const SpPair* const end = op.pairs + op.starts[c + 1];
    for (int k = 0; k < job.blocks; ++k) {
      const Word* base = words + k * plane;
      Floats even[B], odd[B];
#pragma GCC unroll 8
      for (int t = 0; t < B; ++t) even[t] = odd[t] = splat(op.bias[c]);
      for (const SpPair* pair = begin; pair < end; ++pair) {
        const Table table(pair->table);
        const Ints index = (Ints)(load<Shorts>(base + int64_t(pair->second) * kTile) << 1) |
                           load<Ints>(base + int64_t(pair->first) * kTile);
#pragma GCC unroll 8
        for (int t = 0; t < B; ++t) {
          even[t] += table.pick(index >> (2 * t));
          odd[t] += table.pick(index >> (2 * t + 16));
        }
      }
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
              gather((const float*)job.in.data + c * job.in.channel + (int64_t(k) * B + t) * job.in.step +
                         y * op.dilation_h * job.in.row + x * op.dilation_w,
                     tile.in, tile.n_in, plain);
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
#pragma GCC unroll 8
      for (int t = 0; t < B; ++t) even[t] = odd[t] = splat(op.bias[c]);
      for (const SpWeight *w = op.weights + op.starts[c], *end = op.weights + op.starts[c + 1]; w < end; ++w) {
        const Floats value = splat(w->value);
        const float* x = base + w->column * slot;
#pragma GCC unroll 8
        for (int t = 0; t < B; ++t) {
          even[t] = multiply_add(value, load<Floats>(x + t * kTile), even[t]);
          odd[t] = multiply_add(value, load<Floats>(x + t * kTile + kLanes), odd[t]);
        }
      }
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
      for (int64_t t = 0; t < steps; ++t) {
        if (t == 0 || job.in.step) {
          read_step(job.in, tile.in, tile.n_in, c, int64_t(k) * B + t, B, even[t], odd[t]);
          even[t] = even[t] * scale + bias, odd[t] = odd[t] * scale + bias;
        } else {
          even[t] = even[0], odd[t] = odd[0];
        }
      }
      finish<B>(job, tile, c, k, even, odd, v);
    }
  }
}

template <class F>
void each_window(const Job& job, int64_t y, int64_t x, F&& visit) {
  const SpOp& op = job.op;
  for (int dy = 0; dy < op.kernel_h; ++dy)
    for (int dx = 0; dx < op.kernel_w; ++dx) {
      const int64_t iy = y * op.stride_h - op.pad_h + dy, ix = x * op.stride_w - op.pad_w + dx;
      if (iy >= 0 && iy < job.in.height && ix >= 0 && ix < job.in.width) visit(iy, ix);
    }
}

// Pooling of one channel. Spikes: the maximum is a bitwise or; sums keep two bits per step, plus the rest in a second
// plane (channel c + C), so that averages of up to 4 spikes stay packed.
void pool(const Job& job, int c) {
  const SpOp& op = job.op;
  const bool words = job.in.kind == SP_WORDS;
  const int64_t outer = words ? job.blocks : job.T;
  const float scale = op.scale[c];
  for (int64_t k = 0; k < outer; ++k)
    for (int64_t i = 0; i < job.n; ++i)
      for (int64_t y = 0; y < op.height; ++y)
        for (int64_t x = 0; x < op.width; ++x) {
          if (!words) {
            const float* from = (const float*)job.in.data + c * job.in.channel + k * job.in.step;
            float sum = 0, top = -__builtin_inff();
            each_window(job, y, x, [&](int64_t iy, int64_t ix) {
              const float value = from[job.in.at(i, iy, ix)];
              sum += value;
              top = std::max(top, value);
            });
            ((float*)job.real.data)[c * job.real.channel + k * job.real.step + job.real.at(i, y, x)] =
                op.pool_kind == 0 ? top : sum * scale;
            continue;
          }
          const Word* from = (const Word*)job.in.data + c * job.in.channel + k * job.in.step;
          if (op.pool_kind == 0) {
            Word any = 0;
            each_window(job, y, x, [&](int64_t iy, int64_t ix) { any |= from[job.in.at(i, iy, ix)]; });
            ((Word*)job.spikes.data)[c * job.spikes.channel + k * job.spikes.step + job.spikes.at(i, y, x)] = any;
            continue;
          }
          // Spread the fields to four bits of a 32-bit word: room for sums up to 15.
          uint64_t sum = 0;
          each_window(job, y, x, [&](int64_t iy, int64_t ix) {
            uint64_t w = from[job.in.at(i, iy, ix)];
            w = (w | w << 24) & 0x000000FF000000FFull;
            w = (w | w << 12) & 0x000F000F000F000Full;
            w = (w | w << 6) & 0x0303030303030303ull;  // eight bits per step
            sum += w;
          });
          if (op.pool_kind == 1) {
            for (int64_t t = k * job.block; t < std::min<int64_t>(job.T, (k + 1) * job.block); ++t)
              ((float*)job.real.data)[c * job.real.channel + t * job.real.step + job.real.at(i, y, x)] =
                  float(sum >> 8 * (t - k * job.block) & 0xFF) * scale;
          } else {
            Word low = 0, high = 0;
            for (int t = 0; t < job.block; ++t) {
              low |= Word((sum >> 8 * t & 3) << 2 * t);
              high |= Word((sum >> (8 * t + 2) & 3) << 2 * t);
            }
            Word* out = (Word*)job.spikes.data + k * job.spikes.step + job.spikes.at(i, y, x);
            out[c * job.spikes.channel] = low;
            out[(c + int64_t(op.channels)) * job.spikes.channel] = high;
          }
        }
}

// Work is cut into items that any thread may take: tiles, and ranges of output channels where tiles are few.
struct Plan {
  int64_t tiles, ranges;
  Plan(const Job& job, int threads) {
    tiles = job.op.code == SP_POOL ? 1 : job.tiles();
    const int64_t wanted = threads > 1 ? 2 * threads : 1;
    ranges = std::min<int64_t>(job.op.channels, std::max<int64_t>(1, (wanted + tiles - 1) / tiles));
  }
};

void work(const Job& job, const Plan& plan, int64_t item, char* scratch) {
  const int64_t size = (job.op.channels + plan.ranges - 1) / plan.ranges;
  const int from = int(item % plan.ranges * size), to = int(std::min<int64_t>(job.op.channels, from + size));
  if (job.op.code == SP_POOL) {
    for (int c = from; c < to; ++c) pool(job, c);
    return;
  }
  const Tile tile = job.tile(item / plan.ranges);
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
  const int64_t per_block = job.op.code == SP_CONV_LOOKUP ? (job.columns + 1) * kTile * int64_t(sizeof(Word))
                            : job.op.code == SP_CONV_REAL ? job.columns * job.block * kTile * int64_t(sizeof(float))
                                                          : 0;
  return per_block * job.blocks + kSlack;
}

// Threads of one call meet here between operations. They sleep while waiting: on a busy machine a spinning thread
// takes the core from the one it waits for.
class Meeting {
 public:
  explicit Meeting(int members) : members_(members) {}
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
  const int members_;
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
  Meeting meeting(threads);
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
  for (int id = 1; id < threads; ++id) others.emplace_back(member, id);
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
