// Convolution of inputs of any value: kept weights only, all time steps of a tile at once.
#include "engine_tile.h"

namespace engine {
namespace {

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

int64_t scratch_bytes(const Job& job) { return job.columns * step_bytes(job) + kSlack; }

void work(const Job& job, int64_t index, int from, int to, char* scratch) {
  const Tile tile = job.tile(index);
  by_block(job.block, [&](auto steps) { conv_real<decltype(steps)::value>(job, tile, from, to, scratch); });
}

const Register real({"conv_real", position_tiles, scratch_bytes, work});

}  // namespace
}  // namespace engine
