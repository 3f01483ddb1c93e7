// The few vector operations the engine needs, at the width of the instruction set this file is compiled for.
// Everything else is GNU vector arithmetic (g++ and clang++), which maps to AVX-512, AVX2, NEON or plain SSE2 code.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

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

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));

#define ENGINE_INLINE inline __attribute__((always_inline))

template <class V>
ENGINE_INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
ENGINE_INLINE void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}
ENGINE_INLINE Floats splat(float x) { return x - Floats{}; }
ENGINE_INLINE Ints splat(int32_t x) { return x - Ints{}; }

// acc + w * x, rounded once where the hardware can.
ENGINE_INLINE Floats multiply_add(Floats w, Floats x, Floats acc) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)w, (__m512)x, (__m512)acc);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)w, (__m256)x, (__m256)acc);
#else
  return acc + w * x;
#endif
}

// Four sums of two weights, {0, a, b, a + b}; each lane picks one by the lowest two bits of its index.
struct Table {
#if defined(__AVX512F__)
  __m512 entries;
  ENGINE_INLINE explicit Table(const float* four) : entries(_mm512_broadcast_f32x4(_mm_loadu_ps(four))) {}
  ENGINE_INLINE Floats pick(Ints index) const { return (Floats)_mm512_permutevar_ps(entries, (__m512i)index); }
#elif defined(__AVX2__)
  __m256 entries;
  ENGINE_INLINE explicit Table(const float* four) : entries(_mm256_broadcast_ps((const __m128*)four)) {}
  ENGINE_INLINE Floats pick(Ints index) const { return (Floats)_mm256_permutevar_ps(entries, (__m256i)index); }
#else
  Ints one, two, three;  // bit patterns of the entries
  ENGINE_INLINE explicit Table(const float* four)
      : one((Ints)splat(four[1])), two((Ints)splat(four[2])), three((Ints)splat(four[3])) {}
  ENGINE_INLINE Floats pick(Ints index) const {
    const Ints low = -(index & 1), high = -((index >> 1) & 1);
    return (Floats)((low & high & three) | (low & ~high & one) | (~low & high & two));
  }
#endif
};

}  // namespace engine
