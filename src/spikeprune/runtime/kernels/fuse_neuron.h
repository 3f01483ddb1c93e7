// The arithmetic of one run of lanes: number types, surrogates, the neuron.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fuse.h"

namespace fuse {

constexpr int LANES = 64;  // elements treated together; all loops over lanes vectorise

struct BFloat16 {
  uint16_t bits;
};

template <class Y>
using Compute = std::conditional_t<std::is_same_v<Y, double>, double, float>;

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
template <class F>
struct Surrogate {
  int kind;  // 0 arctangent, 1 sigmoid, 2 clamped tanh
  F alpha, k, scale;
  explicit Surrogate(const FuseSpec& spec)
      : kind(spec.surrogate),
        alpha(F(spec.alpha)),
        k(F(spec.alpha * 1.57079632679489661923)),
        scale(F(1 / (2 * std::tanh(spec.alpha / 2)))) {}

  // u[i] = h[i] - v_threshold -> out[i]
  template <class Lanes>
  void slope(const F* u, F* __restrict out, Lanes n) const {
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

template <class F>
struct Neuron {
  F decay, gain, offset, threshold, reset_scale, reset_shift, start;
  bool strict, smooth;
  Surrogate<F> surrogate;
  explicit Neuron(const FuseSpec& k)
      : decay(F(k.decay)),
        gain(F(k.gain)),
        offset(F(k.offset)),
        threshold(F(k.v_threshold)),
        reset_scale(F(k.reset_scale)),
        reset_shift(F(k.reset_shift)),
        start(F(k.v_start)),
        strict(k.strict),
        smooth(k.smooth),
        surrogate(k) {}

  template <class Y, class Lanes>
  void begin(const Y* v_start, F* v, Lanes n) const {
    for (int i = 0; i < n; ++i) v[i] = v_start ? F(load(v_start + i)) : start;
  }
  template <class Y, class Lanes>
  void charge(const Y* y, const F* scale, const F* shift, const F* v, F* __restrict h, Lanes n) const {
    for (int i = 0; i < n; ++i) h[i] = decay * v[i] + (gain * (load(y + i) * scale[i] + shift[i]) + offset);
  }
  template <class Lanes>
  void fire(const F* h, F* __restrict s, Lanes n) const {
    if (smooth)
      for (int i = 0; i < n; ++i) s[i] = surrogate.curve(h[i] - threshold);
    else if (strict)
      for (int i = 0; i < n; ++i) s[i] = h[i] > threshold ? F(1) : F(0);
    else
      for (int i = 0; i < n; ++i) s[i] = h[i] >= threshold ? F(1) : F(0);
  }
  // Written as a mixture rather than a choice so that the smooth curve can take the place of the spike.
  template <class Lanes>
  void reset(const F* h, const F* s, F* __restrict v, Lanes n) const {
    for (int i = 0; i < n; ++i) v[i] = s[i] * (reset_scale * h[i] + reset_shift) + (F(1) - s[i]) * h[i];
  }
  template <class Lanes>
  void slope(const F* h, F* __restrict out, Lanes n) const {
    F u[LANES];
    for (int i = 0; i < n; ++i) u[i] = h[i] - threshold;
    surrogate.slope(u, out, n);
  }
};

}  // namespace fuse
