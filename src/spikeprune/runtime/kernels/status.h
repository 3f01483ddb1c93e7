// No exception leaves a function with a C interface: it becomes a number that runtime/native.py turns into an error.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <system_error>

enum Status : int32_t { DONE = 0, NO_MEMORY = 1, TOO_LARGE = 2, WRONG_ARGUMENT = 3, NO_THREADS = 4, FAILED = 5 };

// A size or an offset does not fit the integers that a kernel counts with.
struct TooLarge : std::exception {
  const char* what() const noexcept override { return "too large"; }
};

// The product of factors if it fits 32 bits with a sign, as offsets inside of a block must.
template <class... Factors>
int32_t product32(Factors... factors) {
  int64_t all = 1;
  for (const int64_t factor : {int64_t(factors)...})
    if (factor < 0 || __builtin_mul_overflow(all, factor, &all)) throw TooLarge();
  if (all > std::numeric_limits<int32_t>::max()) throw TooLarge();
  return int32_t(all);
}

template <class Body>
int32_t guarded(const Body& body) noexcept {
  try {
    body();
    return DONE;
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  } catch (const std::length_error&) {
    return NO_MEMORY;
  } catch (const TooLarge&) {
    return TOO_LARGE;
  } catch (const std::invalid_argument&) {
    return WRONG_ARGUMENT;
  } catch (const std::system_error&) {
    return NO_THREADS;
  } catch (...) {
    return FAILED;
  }
}
