// Convolution on packed spikes: kept weights two at a time by table lookup, or column by column where one fired.
//
// A sparse convolution handles kTile output positions and all time steps at once. The inputs that each kernel tap sees
// are first copied into a tile, [column][kTile] words with column = (channel, tap), which is where padding, stride and
// the edges of the map are dealt with. Then every output channel runs through its kept weights, two at a time: the
// spikes of the two inputs form a two-bit index per position and step, and one table lookup gives the sum of the two
// weights that fire. The sums stay in registers until the neuron has run over T; only its packed spikes are stored.
#include "engine_tile.h"

namespace engine {
namespace {

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
__attribute__((noinline)) void look_up_folded(const SpPair* pair, const SpPair* end, const Word* base, int filled,
                                              int steps, float bias, const float* start, float* plain) {
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
          const Word* row =
              (const Word*)job.in.data + c * job.in.channel + k * job.in.step + y * op.dilation_h * job.in.row;
          for (int x = 0; x < op.kernel_w; ++x, to_column += kTile)
            if (decltype(segments)::value)
              gather(row + x * op.dilation_w, tile.in, n, to_column);
            else
              gather_strided(row + x * op.dilation_w, tile.in, n, op.stride_w, to_column);
        }
    };
    if (op.stride_w == 1 && tile.n_in == 1)
      columns(std::integral_constant<int, 1>{});
    else if (op.stride_w == 1 && tile.n_in == 2)
      columns(std::integral_constant<int, 2>{});
    else
      columns(std::integral_constant<int, 0>{});
    for (int part = 1; part * steps < B; ++part)
      for (Word* column = words + k * plane; column < to_column; column += kTile)
        for (int p = 0; p < tile.filled; ++p) column[part * tile.filled + p] = column[p] >> (2 * steps * part);
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
      if (steps == B)
        add_events<B>(op, base, job.columns, from, to, block);
      else if (steps == 1)
        add_events<1>(op, base, job.columns, from, to, block);
      else if (steps == 2)
        add_events<2>(op, base, job.columns, from, to, block);
      else
        add_events<3>(op, base, job.columns, from, to, block);
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

int64_t scratch_bytes(const Job& job) {
  const int64_t words = job.blocks * (job.columns + 1) * kTile * int64_t(sizeof(Word));
  return words + (job.op.events ? job.op.channels * step_bytes(job) : 0) + kSlack;
}

void work(const Job& job, int64_t index, int from, int to, char* scratch) {
  const Tile tile = job.tile(index);
  by_block(job.block, [&](auto steps) { conv_lookup<decltype(steps)::value>(job, tile, from, to, scratch); });
}

const Register lookup({"conv_lookup", position_tiles, scratch_bytes, work});

}  // namespace
}  // namespace engine
