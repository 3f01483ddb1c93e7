// Spikes as bits: what a convolution keeps of its input until backward, 32 times smaller than float.

#include <cstdint>
#include <cstring>
#include <stdexcept>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "fuse.h"
#include "status.h"

namespace {

// The bits of eight elements: element i sets bit i if it is not zero.
template <class Y>
inline uint8_t pack8(const Y* p) {
  uint8_t byte = 0;
  for (int i = 0; i < 8; ++i) byte |= uint8_t(uint8_t(p[i] != 0) << i);
  return byte;
}
#if defined(__SSE2__)
inline uint8_t pack8(const uint32_t* p) {
  const __m128i zero = _mm_setzero_si128();
  __m128i low = _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), zero);
  __m128i high = _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4)), zero);
  int zeros = _mm_movemask_ps(_mm_castsi128_ps(low)) | _mm_movemask_ps(_mm_castsi128_ps(high)) << 4;
  return uint8_t(~zeros);
}
#endif

template <class Y>
void pack(int64_t n, const Y* from, uint8_t* bits) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) bits[i / 8] = pack8(from + i);
  if (i < n) {
    Y tail[8] = {};
    std::memcpy(tail, from + i, (n - i) * sizeof(Y));
    bits[i / 8] = pack8(tail);
  }
}

template <class Y>
void unpack(int64_t n, const uint8_t* bits, Y one, Y* to) {
  Y table[256][8];  // the eight elements that a byte stands for
  for (int byte = 0; byte < 256; ++byte)
    for (int i = 0; i < 8; ++i) table[byte][i] = byte >> i & 1 ? one : Y(0);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) std::memcpy(to + i, table[bits[i / 8]], sizeof(table[0]));
  if (i < n) std::memcpy(to + i, table[bits[i / 8]], (n - i) * sizeof(Y));
}

}  // namespace

// `type` is a FuseType. Elements are 0 or 1, read and written as bit patterns.
extern "C" {

int32_t fuse_pack(int32_t type, int64_t n, const void* from, uint8_t* bits) {
  return guarded([&] {
    if (type == FUSE_FLOAT32)
      pack(n, static_cast<const uint32_t*>(from), bits);
    else if (type == FUSE_BFLOAT16)
      pack(n, static_cast<const uint16_t*>(from), bits);
    else if (type == FUSE_FLOAT64)
      pack(n, static_cast<const uint64_t*>(from), bits);
    else
      throw std::invalid_argument("element type");
  });
}

int32_t fuse_unpack(int32_t type, int64_t n, const uint8_t* bits, void* to) {
  return guarded([&] {
    if (type == FUSE_FLOAT32)
      unpack<uint32_t>(n, bits, 0x3F800000u, static_cast<uint32_t*>(to));
    else if (type == FUSE_BFLOAT16)
      unpack<uint16_t>(n, bits, 0x3F80u, static_cast<uint16_t*>(to));
    else if (type == FUSE_FLOAT64)
      unpack<uint64_t>(n, bits, 0x3FF0000000000000u, static_cast<uint64_t*>(to));
    else
      throw std::invalid_argument("element type");
  });
}

}  // extern "C"
