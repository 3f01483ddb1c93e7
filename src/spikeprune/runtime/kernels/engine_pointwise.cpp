// Operations on one position at a time: scaling, selection of channels, sums, neurons, copies in and out.
#include "engine_tile.h"

namespace engine {
namespace {

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

void work(const Job& job, int64_t index, int from, int to, char*) {
  const Tile tile = job.tile(index);
  by_block(job.block, [&](auto steps) { pointwise<decltype(steps)::value>(job, tile, from, to); });
}

const Register registered({"pointwise", position_tiles, no_scratch, work});

}  // namespace
}  // namespace engine
