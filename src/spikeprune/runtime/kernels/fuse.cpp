// BatchNorm and a spiking neuron over T time steps in one pass, forward and backward.
//
//   x = scale * y + shift              y: convolution output; scale, shift: BatchNorm, per channel (and step)
//   h = decay * v + gain * x + offset  v: membrane potential left by the step before
//   s = h >= v_threshold               (> where the surrogate's step is strict)
//   v = s ? reset_scale * h + reset_shift : h    hard reset: 0 * h + v_reset; soft: 1 * h - v_threshold
//
// The backward pass computes h again from y, so nothing but y has to be kept between the two. Where 2x2 pooling
// follows, only pooled spikes are written, and their gradient goes to the positions that pooling would have chosen.
//
// Shapes: T steps, N samples, C channels, P positions (H*W). `y` is [T][N][P][C] (channels last) or [T][N][C][P];
// if `is_static`, y is the same at all T steps and holds one. Maps of a few positions are better handed over as
// [T][N][C * P] with P = 1, every channel's numbers repeated: a run over one map is too short. The arithmetic is float
// for float and bfloat16 tensors, double for double.
//
// Work is cut into items that depend on the shapes alone, and partial sums are added in the order of the items: the
// result is the same for every number of threads, which resuming a run bit by bit relies on.

#if defined(__GNUC__) && !defined(__clang__)
// Nobody reads floating-point exception flags here; without this a choice between two values stays a branch.
#pragma GCC optimize("no-trapping-math")
#endif

#include "fuse.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "abi.h"
#include "fuse_cut.h"
#include "fuse_neuron.h"
#include "status.h"
#include "threads.h"

namespace fuse {
namespace {

// Mean and biased variance of y per channel, over samples and positions and (unless per_step) steps.
template <class Y>
void statistics(const FuseSpec& k, const Y* y, double* mean, double* var) {
  using F = Compute<Y>;
  const int64_t steps = k.is_static ? 1 : k.T, groups = k.per_step ? k.T : 1, size = k.N * k.C * k.P;
  const Cut cut(k);
  // Deviations from one value of the channel itself: the plain sum of squares would cancel where |mean| >> deviation.
  std::vector<F> origin(k.C);
  for (int64_t c = 0; c < k.C; ++c) origin[c] = load(y + (k.channels_last ? c : c * k.P));
  reduce<F>(cut, k.threads, groups, {mean, var}, [&](int64_t item, std::vector<Sums<F>>& sums) {
    Spread<F> from(cut, origin.data(), 1);
    for (int64_t t = 0; t < steps; ++t)
      cut.walk(item, [&](int64_t offset, auto n, int64_t c, int64_t, int64_t) {
        const int64_t g = groups == 1 ? 0 : t;
        from.load(c);
        const Y* at = y + t * size + offset;
        const F* o = from.at(c, 0);
        F *first = sums[0].at(c, g), *second = sums[1].at(c, g);
        for (int i = 0; i < n; ++i) {
          F d = load(at + i) - o[i];
          first[i] += d;
          second[i] += d * d;
        }
        sums[0].end_of_run(c, n);
        sums[1].end_of_run(c, n);
      });
  });
  const double count = double(k.N * k.P) * double(groups == 1 ? steps : 1);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t c = 0; c < k.C; ++c) {
      double d = mean[g * k.C + c] / count, square = var[g * k.C + c] / count;
      mean[g * k.C + c] = double(origin[c]) + d;
      var[g * k.C + c] = std::max(0.0, square - d * d);
    }
}

// Spikes [T], the last membrane potential, and where asked for the criticality of every sample and channel:
// max over positions of mean over T of slope(h - v_threshold).
template <class Y>
void forward(const FuseSpec& k, const Y* y, const Compute<Y>* scale, const Compute<Y>* shift, const Y* v_start,
             Y* spikes, Y* v_last, float* criticality) {
  using F = Compute<Y>;
  const int64_t size = k.N * k.C * k.P, groups = k.per_step ? k.T : 1;
  const Cut cut(k, criticality != nullptr, true);
  const Neuron<F> neuron(k);
  parallel(cut.items, k.threads, [&](int64_t item) {
    Spread<F> scales(cut, scale, groups), shifts(cut, shift, groups);
    std::vector<F> pooled(cut.places > 1 ? k.T * LANES : 0);
    cut.walk(item, [&](int64_t first, auto n, int64_t c, int64_t sample, int64_t out_offset) {
      scales.load(c), shifts.load(c);
      for (int place = 0; place < cut.places; ++place) {
        const int64_t offset = first + cut.shift(place);
        F v[LANES], h[LANES], s[LANES], near[LANES] = {};
        neuron.begin(v_start ? v_start + offset : nullptr, v, n);
        for (int64_t t = 0; t < k.T; ++t) {
          const int64_t g = groups == 1 ? 0 : t;
          neuron.charge(y + (k.is_static ? 0 : t * size) + offset, scales.at(c, g), shifts.at(c, g), v, h, n);
          neuron.fire(h, s, n);
          neuron.reset(h, s, v, n);
          Y* out = spikes + t * (size / cut.places) + out_offset;
          if (cut.places == 1) {
            for (int i = 0; i < n; ++i) store(out + i, s[i]);
          } else {
            F* all = pooled.data() + t * LANES;
            if (place == 0) std::fill(all, all + n, F(0));
            if (k.pool == 1)
              for (int i = 0; i < n; ++i) all[i] = std::max(all[i], s[i]);
            else
              for (int i = 0; i < n; ++i) all[i] += F(0.25) * s[i];
            if (place == 3)
              for (int i = 0; i < n; ++i) store(out + i, all[i]);
          }
          if (criticality) {
            neuron.slope(h, s, n);
            for (int i = 0; i < n; ++i) near[i] += s[i];
          }
        }
        if (v_last)
          for (int i = 0; i < n; ++i) store(v_last + offset + i, v[i]);
        if (criticality)
          for (int i = 0; i < n; ++i) {
            int64_t channel = k.channels_last ? c + i : c;
            float& best = criticality[sample * k.C + channel];
            best = std::max(best, float(near[i] / F(k.T)));
          }
      }
    });
  });
}

// What part of a pooled spike's gradient each of the four positions gets: a quarter, or all of it for the first
// maximum. spikes and shares of place j begin at j * stride and j * T * LANES.
template <class F, class Lanes>
void share(const FuseSpec& k, const F* spikes, int64_t stride, F* shares, Lanes n) {
  const int64_t block = k.T * LANES;
  if (k.pool == 2) return std::fill(shares, shares + 4 * block, F(0.25));
  for (int64_t t = 0; t < k.T; ++t) {
    F left[LANES];  // 1 until a position has fired
    for (int i = 0; i < n; ++i) left[i] = F(1);
    for (int place = 0; place < 4; ++place) {
      const F* s = spikes + place * stride + t * LANES;
      F* part = shares + place * block + t * LANES;
      for (int i = 0; i < n; ++i) {
        part[i] = left[i] * s[i];
        left[i] -= part[i];
      }
    }
    for (int i = 0; i < n; ++i) shares[t * LANES + i] += left[i];  // none has: all are 0, the first of them counts
  }
}

// From the gradients of spikes and of the last potential to that of x (written to g_x, laid out as y) and the sums
// that the parameters need, per channel (and step):
//   sum_g = sum of g_x;  sum_gy = sum of g_x * (y - mean)
// and, for a neuron that learns its decay: the sums of g_h, of g_h * v and of g_h * x, in this order in sum_decay.
template <class Y>
void backward(const FuseSpec& k, const Y* g_spikes, const Y* g_last, const Y* y, const Compute<Y>* scale,
              const Compute<Y>* shift, const Compute<Y>* mean, const Y* v_start, Y* g_x, Y* g_start, double* sum_g,
              double* sum_gy, double* sum_decay) {
  using F = Compute<Y>;
  const int64_t size = k.N * k.C * k.P, groups = k.per_step ? k.T : 1;
  const Cut cut(k, false, true);
  const Neuron<F> neuron(k);
  const F through_reset = k.detach_reset ? F(0) : F(1), decay = neuron.decay, gain = neuron.gain;
  const F reset_scale = neuron.reset_scale, reset_shift = neuron.reset_shift;
  std::vector<double*> outs = {sum_g, sum_gy};
  for (int j = 0; sum_decay && j < 3; ++j) outs.push_back(sum_decay + j * groups * k.C);
  reduce<F>(cut, k.threads, groups, outs, [&](int64_t item, std::vector<Sums<F>>& sums) {
    Spread<F> scales(cut, scale, groups), shifts(cut, shift, groups), means(cut, mean, groups);
    const int64_t block = k.T * LANES;
    std::vector<F> kept(4 * block * cut.places);  // of every step: v before, h, s, y; reading y twice costs more
    std::vector<F> shares(cut.places > 1 ? 4 * block : 0);  // of the pooled gradient, by position and step
    const std::vector<Y> nothing(LANES);
    cut.walk(item, [&](int64_t first, auto n, int64_t c, int64_t, int64_t out_offset) {
      scales.load(c), shifts.load(c), means.load(c);
      for (int place = 0; place < cut.places; ++place) {
        const int64_t offset = first + cut.shift(place);
        F* const v0 = kept.data() + 4 * block * place;
        F *const h0 = v0 + block, *const s0 = h0 + block, *const y0 = s0 + block;
        neuron.begin(v_start ? v_start + offset : nullptr, v0, n);
        for (int64_t t = 0; t < k.T; ++t) {
          const int64_t g = groups == 1 ? 0 : t, at = t * LANES;
          const Y* in = y + (k.is_static ? 0 : t * size) + offset;
          for (int i = 0; i < n; ++i) y0[at + i] = load(in + i);
          neuron.charge(y0 + at, scales.at(c, g), shifts.at(c, g), v0 + at, h0 + at, n);
          neuron.fire(h0 + at, s0 + at, n);
          if (t + 1 < k.T) neuron.reset(h0 + at, s0 + at, v0 + at + LANES, n);
        }
      }
      if (cut.places > 1) share(k, kept.data() + 2 * block, 4 * block, shares.data(), n);
      for (int place = 0; place < cut.places; ++place) {
        const int64_t offset = first + cut.shift(place);
        const F* const v0 = kept.data() + 4 * block * place;
        const F *const h0 = v0 + block, *const s0 = h0 + block, *const y0 = s0 + block;
        F g_v[LANES], g_h[LANES], g_s[LANES], g_still[LANES] = {}, slope[LANES];
        for (int i = 0; i < n; ++i) g_v[i] = g_last ? F(load(g_last + offset + i)) : F(0);
        for (int64_t t = k.T - 1; t >= 0; --t) {
          const F *h = h0 + t * LANES, *s = s0 + t * LANES, *in = y0 + t * LANES;
          const int64_t g = groups == 1 ? 0 : t;
          const Y* from = g_spikes ? g_spikes + t * (size / cut.places) + out_offset : nothing.data();
          for (int i = 0; i < n; ++i) g_s[i] = F(load(from + i));
          if (cut.places > 1) {
            const F* part = shares.data() + place * block + t * LANES;
            for (int i = 0; i < n; ++i) g_s[i] *= part[i];
          }
          neuron.slope(h, slope, n);
          for (int i = 0; i < n; ++i) {
            F reset = reset_scale * h[i] + reset_shift;
            F passed = s[i] * reset_scale + (F(1) - s[i]) + through_reset * slope[i] * (reset - h[i]);
            g_h[i] = g_s[i] * slope[i] + g_v[i] * passed;
            g_v[i] = decay * g_h[i];
          }
          if (sum_decay) {
            const F *a = scales.at(c, g), *b = shifts.at(c, g), *v = v0 + t * LANES;
            F* __restrict one = sums[2].at(c, g), * __restrict by_v = sums[3].at(c, g);
            F* __restrict by_x = sums[4].at(c, g);
            for (int i = 0; i < n; ++i) {
              one[i] += g_h[i];
              by_v[i] += g_h[i] * v[i];
              by_x[i] += g_h[i] * (in[i] * a[i] + b[i]);
            }
          }
          if (k.is_static) {
            for (int i = 0; i < n; ++i) g_still[i] += g_h[i];
            if (t > 0) continue;
            std::copy(g_still, g_still + n, g_h);
          }
          F* __restrict all = sums[0].at(c, g), * __restrict by_y = sums[1].at(c, g);
          const F* m = means.at(c, g);
          Y* __restrict out = g_x + (k.is_static ? 0 : t * size) + offset;
          for (int i = 0; i < n; ++i) {
            F value = gain * g_h[i];
            store(out + i, value);
            all[i] += value;
            by_y[i] += value * (in[i] - m[i]);
          }
        }
        if (g_start)
          for (int i = 0; i < n; ++i) store(g_start + offset + i, g_v[i]);
        for (auto& sum : sums) sum.end_of_run(c, n);
      }
    });
  });
}

// g = by_g * g + by_y * y + constant, in place: the rest of BatchNorm's backward once the sums are known.
template <class Y>
void through_norm(const FuseSpec& k, Y* g, const Y* y, const Compute<Y>* by_g, const Compute<Y>* by_y,
                  const Compute<Y>* constant) {
  using F = Compute<Y>;
  const int64_t steps = k.is_static ? 1 : k.T, groups = k.per_step ? k.T : 1, size = k.N * k.C * k.P;
  const Cut cut(k);
  parallel(cut.items, k.threads, [&](int64_t item) {
    Spread<F> a(cut, by_g, groups), b(cut, by_y, groups), d(cut, constant, groups);
    for (int64_t t = 0; t < steps; ++t)
      cut.walk(item, [&](int64_t offset, auto n, int64_t c, int64_t, int64_t) {
        a.load(c), b.load(c), d.load(c);
        const int64_t at = t * size + offset, group = groups == 1 ? 0 : t;
        const F *A = a.at(c, group), *B = b.at(c, group), *D = d.at(c, group);
        for (int i = 0; i < n; ++i) store(g + at + i, A[i] * F(load(g + at + i)) + B[i] * F(load(y + at + i)) + D[i]);
      });
  });
}

}  // namespace
}  // namespace fuse

using namespace fuse;

// `type` is a FuseType.
#define BY_TYPE(type, call)                        \
  do {                                             \
    if ((type) == FUSE_FLOAT32) {                  \
      using Y = float;                             \
      call;                                        \
    } else if ((type) == FUSE_BFLOAT16) {          \
      using Y = BFloat16;                          \
      call;                                        \
    } else if ((type) == FUSE_FLOAT64) {           \
      using Y = double;                            \
      call;                                        \
    } else                                         \
      throw std::invalid_argument("element type"); \
  } while (0)

extern "C" {

const char* fuse_abi(void) {
  static const Abi abi({{"FuseSpec", sizeof(FuseSpec)},
                        {"FuseSpec.pool", offsetof(FuseSpec, pool)},
                        {"FuseSpec.alpha", offsetof(FuseSpec, alpha)},
                        {"EventSpec", sizeof(EventSpec)},
                        {"EventSpec.threads", offsetof(EventSpec, threads)},
                        {"float32", FUSE_FLOAT32},
                        {"bfloat16", FUSE_BFLOAT16},
                        {"float64", FUSE_FLOAT64},
                        {"atan", FUSE_ATAN},
                        {"sigmoid", FUSE_SIGMOID},
                        {"clamped-tanh", FUSE_CLAMPED_TANH},
                        {"", FUSE_NO_POOL},
                        {"max", FUSE_MAX},
                        {"avg", FUSE_AVG}});
  return abi.text();
}

int32_t fuse_statistics(const FuseSpec* k, int type, const void* y, double* mean, double* var) {
  return guarded([&] { BY_TYPE(type, statistics(*k, static_cast<const Y*>(y), mean, var)); });
}

int32_t fuse_forward(const FuseSpec* k, int type, const void* y, const void* scale, const void* shift,
                     const void* v_start, void* spikes, void* v_last, float* criticality) {
  return guarded([&] {
    BY_TYPE(type, forward(*k, static_cast<const Y*>(y), static_cast<const Compute<Y>*>(scale),
                          static_cast<const Compute<Y>*>(shift), static_cast<const Y*>(v_start),
                          static_cast<Y*>(spikes), static_cast<Y*>(v_last), criticality));
  });
}

int32_t fuse_backward(const FuseSpec* k, int type, const void* g_spikes, const void* g_last, const void* y,
                      const void* scale, const void* shift, const void* mean, const void* v_start, void* g_x,
                      void* g_start, double* sum_g, double* sum_gy, double* sum_decay) {
  return guarded([&] {
    BY_TYPE(type, backward(*k, static_cast<const Y*>(g_spikes), static_cast<const Y*>(g_last), static_cast<const Y*>(y),
                           static_cast<const Compute<Y>*>(scale), static_cast<const Compute<Y>*>(shift),
                           static_cast<const Compute<Y>*>(mean), static_cast<const Y*>(v_start), static_cast<Y*>(g_x),
                           static_cast<Y*>(g_start), sum_g, sum_gy, sum_decay));
  });
}

int32_t fuse_through_norm(const FuseSpec* k, int type, void* g, const void* y, const void* by_g, const void* by_y,
                          const void* constant) {
  return guarded([&] {
    BY_TYPE(type, through_norm(*k, static_cast<Y*>(g), static_cast<const Y*>(y), static_cast<const Compute<Y>*>(by_g),
                               static_cast<const Compute<Y>*>(by_y), static_cast<const Compute<Y>*>(constant)));
  });
}

}  // extern "C"
