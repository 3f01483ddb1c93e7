// Vectors of numbers as GNU vector types (g++ and clang++), and how they come from memory and go there.
#pragma once

#include <cstring>

#define LANES_INLINE inline __attribute__((always_inline))

// BYTES / sizeof(F) numbers that are treated together.
template <class F, int BYTES>
struct Vector {
  typedef F type __attribute__((vector_size(BYTES)));
};

// From and to any address: a plain dereference would promise an alignment that callers do not have.
template <class V>
LANES_INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
LANES_INLINE void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}
