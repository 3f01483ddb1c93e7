// Pooling, of packed spikes or of real values.
#include "engine_tile.h"

namespace engine {
namespace {

enum class Pool { maximum, average, planes };

// Pooling of packed spikes. The maximum is a bitwise or. A sum up to 15 is counted bit by bit, for all steps of a word
// at once, and stays packed as two planes (sum & 3 in channel c, sum >> 2 in channel c + C). Other averages become
// real.
template <Pool kind>
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
          if (kind == Pool::maximum) {
            any |= bits;
          } else if (kind == Pool::planes) {
            const Ints carry = ones & bits, carry2 = twos & carry;
            ones ^= bits, twos ^= carry, eights ^= fours & carry2, fours ^= carry2;
          } else {
            for (int t = 0; t < job.block; ++t) even[t] += (bits >> (2 * t)) & 3, odd[t] += (bits >> (2 * t + 16)) & 3;
          }
        }
      if (kind == Pool::average) {
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
      store(taken, kind == Pool::maximum ? any : ones | twos << 1);
      scatter(taken, tile.out, tile.n_out, out + c * job.spikes.channel);
      if (kind == Pool::planes) {
        store(taken, fours | eights << 1);
        scatter(taken, tile.out, tile.n_out, out + (c + int64_t(op.channels)) * job.spikes.channel);
      }
    }
}

template <Pool kind>
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
              kind == Pool::maximum ? top : sum * op.scale[c];
        }
}

int64_t pool_tiles(const Job& job) { return job.in.kind == SP_WORDS ? job.tiles() : 1; }

template <Pool kind>
void work(const Job& job, int64_t index, int from, int to, char*) {
  if (job.in.kind == SP_WORDS) return pool_words<kind>(job, job.tile(index), from, to);
  for (int c = from; c < to; ++c) pool_real<kind>(job, c);
}

const Register maximum({"pool_max", pool_tiles, no_scratch, work<Pool::maximum>});
const Register average({"pool_average", pool_tiles, no_scratch, work<Pool::average>});
const Register planes({"pool_planes", pool_tiles, no_scratch, work<Pool::planes>});

}  // namespace
}  // namespace engine
