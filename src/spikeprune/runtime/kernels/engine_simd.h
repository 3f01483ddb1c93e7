// The few vector operations the engine needs, at the width of the instruction set this file is compiled for.
// Everything else is GNU vector arithmetic (g++ and clang++), which maps to AVX-512, AVX2, NEON or plain SSE2 code.
#pragma once
#include <cstdint>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace engine {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// A tile is kTile output positions: the even ones in one vector of floats, the odd ones in another, because a 32-bit
// lane of packed spikes holds two neighbouring positions of 16 bits each.
constexpr int kTile = 2 * kLanes;

using Floats = Vector<float, 4 * kLanes>::type;
using Ints = Vector<int32_t, 4 * kLanes>::type;
using Shorts = Vector<int16_t, 4 * kLanes>::type;
using Wide = Vector<int32_t, 8 * kLanes>::type;  // as many as Shorts

LANES_INLINE Floats splat(float x) { return x - Floats{}; }
LANES_INLINE Ints splat(int32_t x) { return x - Ints{}; }

// acc + w * x, rounded once where the hardware can.
LANES_INLINE Floats multiply_add(Floats w, Floats x, Floats acc) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)w, (__m512)x, (__m512)acc);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)w, (__m256)x, (__m256)acc);
#else
  return acc + w * x;
#endif
}

#if defined(__AVX512F__)
#define ENGINE_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ENGINE_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define ENGINE_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ENGINE_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define ENGINE_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ENGINE_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define ENGINE_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ENGINE_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ENGINE_EVEN 0, 2, 4, 6
#define ENGINE_ODD 1, 3, 5, 7
#define ENGINE_LOW 0, 4, 1, 5
#define ENGINE_HIGH 2, 6, 3, 7
#endif
// kTile floats in order <-> the even and the odd ones.
LANES_INLINE void split(const float* from, Floats& even, Floats& odd) {
  const Floats a = load<Floats>(from), b = load<Floats>(from + kLanes);
  even = __builtin_shufflevector(a, b, ENGINE_EVEN), odd = __builtin_shufflevector(a, b, ENGINE_ODD);
}
LANES_INLINE void join(Floats even, Floats odd, float* to) {
  store(to, (Floats)__builtin_shufflevector(even, odd, ENGINE_LOW));
  store(to + kLanes, (Floats)__builtin_shufflevector(even, odd, ENGINE_HIGH));
}

// The four sums {0, a, b, a + b} of two weights; each lane picks one by the lowest two bits of its index.
struct Table {
#if defined(__AVX512F__) || defined(__AVX2__)
  Floats entries;
  LANES_INLINE Table(float a, float b) {
    Ints has_a, has_b;
    for (int i = 0; i < kLanes; ++i) has_a[i] = i & 1 ? -1 : 0, has_b[i] = i & 2 ? -1 : 0;
    entries = (Floats)((Ints)splat(a) & has_a) + (Floats)((Ints)splat(b) & has_b);
  }
#if defined(__AVX512F__)
  LANES_INLINE Floats pick(Ints index) const { return (Floats)_mm512_permutevar_ps((__m512)entries, (__m512i)index); }
#else
  LANES_INLINE Floats pick(Ints index) const { return (Floats)_mm256_permutevar_ps((__m256)entries, (__m256i)index); }
#endif
#else
  Ints one, two;  // bit patterns of the weights
  LANES_INLINE Table(float a, float b) : one((Ints)splat(a)), two((Ints)splat(b)) {}
  LANES_INLINE Floats pick(Ints index) const {
    return (Floats)(one & -(index & 1)) + (Floats)(two & -((index >> 1) & 1));
  }
#endif
};

}  // namespace engine
