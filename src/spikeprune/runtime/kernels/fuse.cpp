// BatchNorm and a spiking neuron over T time steps in one pass, forward and backward.
//
//   x = scale * y + shift              y: convolution output; scale, shift: BatchNorm, per channel (and step)
//   h = decay * v + gain * x + offset  v: membrane potential left by the step before
//   s = h >= v_threshold               (> where the surrogate's step is strict)
//   v = s ? reset_scale * h + reset_shift : h    hard reset: 0 * h + v_reset; soft: 1 * h - v_threshold
//
// The backward pass computes h again from y, so nothing but y has to be kept between the two. Where 2x2 pooling follows,
// only pooled spikes are written, and their gradient goes to the positions that pooling would have chosen.
//
// Shapes: T steps, N samples, C channels, P positions (H*W). `y` is [T][N][P][C] (channels last) or [T][N][C][P];
// a `still` y is one step that drives all T. Maps of a few positions are better handed over as [T][N][C * P] with
// P = 1, every channel's numbers repeated: a run over one map would be too short to vectorise. The arithmetic is float for float and bfloat16 tensors, double for double.
//
// Work is cut into items that depend on the shapes alone, and partial sums are added in the order of the items: the
// result is the same for every number of threads, which resuming a run bit by bit relies on.

#if defined(__GNUC__) && !defined(__clang__)
// Nobody reads floating-point exception flags here; without this a choice between two values stays a branch.
#pragma GCC optimize("no-trapping-math")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "threads.h"

extern "C" {
struct FuseSpec {
    int64_t T, N, C, P, W;  // W: width of a map; read where there is pooling
    int32_t channels_last;  // layout of y, spikes and gradients
    int32_t per_step;       // scale, shift and sums are [T][C] instead of [C]; never with `still`
    int32_t still;          // y is one step that drives all T
    int32_t surrogate;      // 0 arctangent, 1 sigmoid, 2 clamped tanh
    int32_t smooth;         // fire the surrogate's own curve instead of spikes (for checks of the gradient)
    int32_t strict;         // h == v_threshold does not fire
    int32_t detach_reset;   // no gradient through the reset
    int32_t threads;
    int32_t pool;           // of spikes over 2x2 positions: 0 none, 1 maximum, 2 average; channels last and even maps only
    double decay, gain, offset, v_threshold, reset_scale, reset_shift, v_start, alpha;
};
}

namespace {

constexpr int LANES = 64;     // elements treated together; all loops over lanes vectorise
constexpr int FLUSH = 32;     // rows summed in the compute type before they go into a double

struct BFloat16 {
    uint16_t bits;
};

template <class Y> using Compute = std::conditional_t<std::is_same_v<Y, double>, double, float>;

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const BFloat16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(double* p, double value) { *p = value; }
inline void store(BFloat16* p, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    p->bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

// exp(x) for x <= 0. The float version is a polynomial (after Cephes, relative error 2e-7) because a call of the
// library's exp would keep the loop from vectorising.
inline double exp_negative(double x) { return std::exp(x); }
inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    int n = int(x * 1.44269504f - 0.5f);
    float r = x - float(n) * 0.693359375f + float(n) * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent = (n + 127) << 23;
    float power;
    std::memcpy(&power, &exponent, 4);
    return p * power;
}

// A surrogate: `slope` is the derivative that backward uses, `curve` the smooth function it belongs to. The kind is
// chosen outside of the loops over lanes, so that each of them vectorises.
template <class F> struct Surrogate {
    int kind;  // 0 arctangent, 1 sigmoid, 2 clamped tanh
    F alpha, k, scale;
    explicit Surrogate(const FuseSpec& spec)
        : kind(spec.surrogate), alpha(F(spec.alpha)), k(F(spec.alpha * 1.57079632679489661923)),
          scale(F(1 / (2 * std::tanh(spec.alpha / 2)))) {}

    // u[i] = h[i] - v_threshold -> out[i]
    template <class Lanes> void slope(const F* u, F* __restrict out, Lanes n) const {
        if (kind == 0)
            for (int i = 0; i < n; ++i) out[i] = alpha * F(0.5) / (F(1) + (k * u[i]) * (k * u[i]));
        if (kind == 1)
            for (int i = 0; i < n; ++i) {
                F m = std::fabs(u[i]), e = exp_negative(-alpha * m);
                out[i] = alpha * e / ((F(1) + e) * (F(1) + e));
            }
        if (kind == 2)
            for (int i = 0; i < n; ++i) {  // sech^2(z) = 4 e / (1 + e)^2 with e = exp(-2 |z|)
                F m = std::fabs(u[i]), e = exp_negative(F(-2) * alpha * m);
                F slope = alpha * scale * F(4) * e / ((F(1) + e) * (F(1) + e));
                out[i] = slope * (m > F(0.5) ? F(0) : F(1));
            }
    }
    F curve(F u) const {
        if (kind == 0) return std::atan(k * u) * F(0.31830988618379067154) + F(0.5);
        if (kind == 1) return F(1) / (F(1) + std::exp(-alpha * u));
        return std::tanh(alpha * std::min(F(0.5), std::max(F(-0.5), u))) * scale + F(0.5);
    }
};

// How the tensor is cut into items of work, and every item into runs of up to LANES neighbouring elements.
//   channels last: an item is some rows (n, p) of C channels; a run is a piece of one row
//   contiguous:    an item is some channels of some samples; a run is a piece of one map
// With `by_sample`, an item never spans two samples, so that a maximum over space has one writer.
struct Cut {
    int64_t C, P, N, W, items, rows, samples, wide, parts, windows;
    bool last;
    int places;  // positions of y behind one of the spikes handed on

    explicit Cut(const FuseSpec& k, bool by_sample = false, bool pooled = false)
        : C(k.C), P(k.P), N(k.N), W(k.W), last(k.channels_last), places(pooled && k.pool ? 4 : 1) {
        windows = P / places;
        rows = by_sample ? windows : std::max<int64_t>(64 / places, (N * windows + 63) / 64);
        samples = by_sample ? 1 : (N + 31) / 32;
        const int64_t groups = (N + samples - 1) / samples;
        wide = std::max<int64_t>(1, C * groups / 16);
        parts = (C + wide - 1) / wide;
        items = last ? (N * windows + rows - 1) / rows : groups * parts;
    }

    // A full run is compiled apart: with the number of lanes known, loops need neither head nor tail.
    template <class Run>
    static void full_or_part(const Run& run, int64_t offset, int64_t n, int64_t c, int64_t sample, int64_t out) {
        if (n >= LANES)
            run(offset, std::integral_constant<int, LANES>(), c, sample, out);
        else
            run(offset, int(n), c, sample, out);
    }
    // From the first position of a window to its others, in the order in which pooling scans them.
    int64_t shift(int place) const { return (place / 2 * W + place % 2) * C; }

    // Calls run(offset in one step, lanes, first channel, sample, offset in one step of spikes) for each run of an item;
    // under pooling the first offset is that of the window's first position.
    template <class Run> void walk(int64_t item, const Run& run) const {
        if (last) {
            for (int64_t r = item * rows, end = std::min(N * windows, r + rows); r < end; ++r) {
                int64_t place = r;
                if (places > 1) {
                    const int64_t q = r % windows, half = W / 2;
                    place = r / windows * P + q / half * 2 * W + q % half * 2;
                }
                for (int64_t c = 0; c < C; c += LANES)
                    full_or_part(run, place * C + c, C - c, c, r / windows, r * C + c);
            }
            return;
        }
        const int64_t n0 = item / parts * samples, c0 = item % parts * wide;
        for (int64_t n = n0, end = std::min(N, n0 + samples); n < end; ++n)
            for (int64_t c = c0, c_end = std::min(C, c0 + wide); c < c_end; ++c)
                for (int64_t p = 0; p < P; p += LANES)
                    full_or_part(run, (n * C + c) * P + p, P - p, c, n, (n * C + c) * P + p);
    }
};

// Per-channel numbers as the lanes of a run need them: channels last reads them in place, contiguous repeats one of
// them over the map.
template <class F> struct Spread {
    const Cut& cut;
    const F* values;
    int64_t groups;
    std::vector<F> lanes;
    Spread(const Cut& cut, const F* values, int64_t groups)
        : cut(cut), values(values), groups(groups), lanes(cut.last ? 0 : groups * LANES) {}
    void load(int64_t c) {
        if (cut.last) return;
        for (int64_t g = 0; g < groups; ++g) std::fill_n(lanes.data() + g * LANES, LANES, values[g * cut.C + c]);
    }
    const F* at(int64_t c, int64_t g) const { return cut.last ? values + g * cut.C + c : lanes.data() + g * LANES; }
};

// Sums per channel, gathered in the compute type over a few rows or one run and then in double; one set per item.
template <class F> struct Sums {
    const Cut& cut;
    int64_t groups, width, since = 0;
    std::vector<F> part;        // [groups][width]
    std::vector<double> total;  // [groups][C]

    Sums(const Cut& cut, int64_t groups)
        : cut(cut), groups(groups), width(cut.last ? cut.C : LANES), part(groups * width), total(groups * cut.C) {}
    F* at(int64_t c, int64_t g) { return part.data() + g * width + (cut.last ? c : 0); }
    void end_of_run(int64_t c, int n) {
        if (!cut.last) {
            for (int64_t g = 0; g < groups; ++g) total[g * cut.C + c] += add(at(0, g), n);
            std::fill(part.begin(), part.end(), F(0));
        } else if (c + n == cut.C && ++since == FLUSH) {
            flush();
        }
    }
    void flush() {
        if (cut.last)
            for (int64_t i = 0; i < groups * width; ++i) total[i] += double(part[i]);
        std::fill(part.begin(), part.end(), F(0));
        since = 0;
    }
    static F add(const F* values, int n) {
        F eight[8] = {}, sum = 0;
        int i = 0;
        for (; i + 8 <= n; i += 8)
            for (int j = 0; j < 8; ++j) eight[j] += values[i + j];
        for (; i < n; ++i) sum += values[i];
        return sum + (((eight[0] + eight[4]) + (eight[2] + eight[6])) + ((eight[1] + eight[5]) + (eight[3] + eight[7])));
    }
};

// Runs body(item, sums...) on all items and adds the per-item totals into `out` in the order of the items.
template <class F, class Body>
void reduce(const Cut& cut, int threads, int64_t groups, std::vector<double*> outs, const Body& body) {
    int64_t size = groups * cut.C, n = int64_t(outs.size());
    std::vector<double> all(cut.items * n * size);
    parallel(cut.items, threads, [&](int64_t item) {
        std::vector<Sums<F>> sums(n, Sums<F>(cut, groups));
        body(item, sums);
        for (auto& sum : sums) sum.flush();
        for (int64_t j = 0; j < n; ++j)
            std::copy(sums[j].total.begin(), sums[j].total.end(), all.begin() + (item * n + j) * size);
    });
    for (int64_t j = 0; j < n; ++j) {
        std::fill(outs[j], outs[j] + size, 0.0);
        for (int64_t item = 0; item < cut.items; ++item)
            for (int64_t i = 0; i < size; ++i) outs[j][i] += all[(item * n + j) * size + i];
    }
}

// Mean and biased variance of y per channel, over samples and positions and (unless per_step) steps.
template <class Y> void statistics(const FuseSpec& k, const Y* y, double* mean, double* var) {
    using F = Compute<Y>;
    const int64_t steps = k.still ? 1 : k.T, groups = k.per_step ? k.T : 1, size = k.N * k.C * k.P;
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

template <class F> struct Neuron {
    F decay, gain, offset, threshold, reset_scale, reset_shift, start;
    bool strict, smooth;
    Surrogate<F> surrogate;
    explicit Neuron(const FuseSpec& k)
        : decay(F(k.decay)), gain(F(k.gain)), offset(F(k.offset)), threshold(F(k.v_threshold)),
          reset_scale(F(k.reset_scale)), reset_shift(F(k.reset_shift)), start(F(k.v_start)), strict(k.strict),
          smooth(k.smooth), surrogate(k) {}

    template <class Y, class Lanes> void begin(const Y* v_start, F* v, Lanes n) const {
        for (int i = 0; i < n; ++i) v[i] = v_start ? F(load(v_start + i)) : start;
    }
    template <class Y, class Lanes>
    void charge(const Y* y, const F* scale, const F* shift, const F* v, F* __restrict h, Lanes n) const {
        for (int i = 0; i < n; ++i) h[i] = decay * v[i] + (gain * (load(y + i) * scale[i] + shift[i]) + offset);
    }
    template <class Lanes> void fire(const F* h, F* __restrict s, Lanes n) const {
        if (smooth)
            for (int i = 0; i < n; ++i) s[i] = surrogate.curve(h[i] - threshold);
        else if (strict)
            for (int i = 0; i < n; ++i) s[i] = h[i] > threshold ? F(1) : F(0);
        else
            for (int i = 0; i < n; ++i) s[i] = h[i] >= threshold ? F(1) : F(0);
    }
    // Written as a mixture rather than a choice so that the smooth curve can take the place of the spike.
    template <class Lanes> void reset(const F* h, const F* s, F* __restrict v, Lanes n) const {
        for (int i = 0; i < n; ++i) v[i] = s[i] * (reset_scale * h[i] + reset_shift) + (F(1) - s[i]) * h[i];
    }
    template <class Lanes> void slope(const F* h, F* __restrict out, Lanes n) const {
        F u[LANES];
        for (int i = 0; i < n; ++i) u[i] = h[i] - threshold;
        surrogate.slope(u, out, n);
    }
};

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
        cut.walk(
            item,
            [&](int64_t first, auto n, int64_t c, int64_t sample, int64_t out_offset) {
                scales.load(c), shifts.load(c);
                for (int place = 0; place < cut.places; ++place) {
                    const int64_t offset = first + cut.shift(place);
                    F v[LANES], h[LANES], s[LANES], near[LANES] = {};
                    neuron.begin(v_start ? v_start + offset : nullptr, v, n);
                    for (int64_t t = 0; t < k.T; ++t) {
                        const int64_t g = groups == 1 ? 0 : t;
                        neuron.charge(y + (k.still ? 0 : t * size) + offset, scales.at(c, g), shifts.at(c, g), v, h, n);
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

// What part of a pooled spike's gradient each of the four positions gets: a quarter, or all of it for the first maximum.
// spikes and shares of place j begin at j * stride and j * T * LANES.
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
        cut.walk(
            item,
            [&](int64_t first, auto n, int64_t c, int64_t, int64_t out_offset) {
                scales.load(c), shifts.load(c), means.load(c);
                for (int place = 0; place < cut.places; ++place) {
                    const int64_t offset = first + cut.shift(place);
                    F* const v0 = kept.data() + 4 * block * place;
                    F *const h0 = v0 + block, *const s0 = h0 + block, *const y0 = s0 + block;
                    neuron.begin(v_start ? v_start + offset : nullptr, v0, n);
                    for (int64_t t = 0; t < k.T; ++t) {
                        const int64_t g = groups == 1 ? 0 : t, at = t * LANES;
                        const Y* in = y + (k.still ? 0 : t * size) + offset;
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
                            F *__restrict one = sums[2].at(c, g), *__restrict by_v = sums[3].at(c, g);
                            F* __restrict by_x = sums[4].at(c, g);
                            for (int i = 0; i < n; ++i) {
                                one[i] += g_h[i];
                                by_v[i] += g_h[i] * v[i];
                                by_x[i] += g_h[i] * (in[i] * a[i] + b[i]);
                            }
                        }
                        if (k.still) {
                            for (int i = 0; i < n; ++i) g_still[i] += g_h[i];
                            if (t > 0) continue;
                            std::copy(g_still, g_still + n, g_h);
                        }
                        F *__restrict all = sums[0].at(c, g), *__restrict by_y = sums[1].at(c, g);
                        const F* m = means.at(c, g);
                        Y* __restrict out = g_x + (k.still ? 0 : t * size) + offset;
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
    const int64_t steps = k.still ? 1 : k.T, groups = k.per_step ? k.T : 1, size = k.N * k.C * k.P;
    const Cut cut(k);
    parallel(cut.items, k.threads, [&](int64_t item) {
        Spread<F> a(cut, by_g, groups), b(cut, by_y, groups), d(cut, constant, groups);
        for (int64_t t = 0; t < steps; ++t)
            cut.walk(item, [&](int64_t offset, auto n, int64_t c, int64_t, int64_t) {
                a.load(c), b.load(c), d.load(c);
                const int64_t at = t * size + offset, group = groups == 1 ? 0 : t;
                const F *A = a.at(c, group), *B = b.at(c, group), *D = d.at(c, group);
                for (int i = 0; i < n; ++i)
                    store(g + at + i, A[i] * F(load(g + at + i)) + B[i] * F(load(y + at + i)) + D[i]);
            });
    });
}

}  // namespace

// The element type of a tensor: 0 float, 1 bfloat16, 2 double.
#define BY_TYPE(type, call)                            \
    do {                                               \
        if ((type) == 0) { using Y = float; call; }    \
        if ((type) == 1) { using Y = BFloat16; call; } \
        if ((type) == 2) { using Y = double; call; }   \
    } while (0)

extern "C" {

void fuse_statistics(const FuseSpec* k, int type, const void* y, double* mean, double* var) {
    BY_TYPE(type, statistics(*k, static_cast<const Y*>(y), mean, var));
}

void fuse_forward(const FuseSpec* k, int type, const void* y, const void* scale, const void* shift,
                  const void* v_start, void* spikes, void* v_last, float* criticality) {
    BY_TYPE(type, forward(*k, static_cast<const Y*>(y), static_cast<const Compute<Y>*>(scale),
                          static_cast<const Compute<Y>*>(shift), static_cast<const Y*>(v_start),
                          static_cast<Y*>(spikes), static_cast<Y*>(v_last), criticality));
}

void fuse_backward(const FuseSpec* k, int type, const void* g_spikes, const void* g_last, const void* y,
                   const void* scale, const void* shift, const void* mean, const void* v_start, void* g_x,
                   void* g_start, double* sum_g, double* sum_gy, double* sum_decay) {
    BY_TYPE(type, backward(*k, static_cast<const Y*>(g_spikes), static_cast<const Y*>(g_last),
                           static_cast<const Y*>(y), static_cast<const Compute<Y>*>(scale),
                           static_cast<const Compute<Y>*>(shift), static_cast<const Compute<Y>*>(mean),
                           static_cast<const Y*>(v_start), static_cast<Y*>(g_x), static_cast<Y*>(g_start), sum_g,
                           sum_gy, sum_decay));
}

void fuse_through_norm(const FuseSpec* k, int type, void* g, const void* y, const void* by_g, const void* by_y,
                       const void* constant) {
    BY_TYPE(type, through_norm(*k, static_cast<Y*>(g), static_cast<const Y*>(y),
                               static_cast<const Compute<Y>*>(by_g), static_cast<const Compute<Y>*>(by_y),
                               static_cast<const Compute<Y>*>(constant)));
}

}  // extern "C"
