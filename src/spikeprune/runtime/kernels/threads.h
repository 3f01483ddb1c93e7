// Work shared by threads that live for one call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// body(i) for i = 0 .. items - 1, in contiguous ranges, one for each thread. What a body throws is thrown here once all
// threads have ended; where the system gives no more threads, this one does their ranges too.
template <class Body>
void parallel(int64_t items, int64_t threads, const Body& body) {
  const int64_t workers = std::min(items, std::max<int64_t>(threads, 1));
  std::exception_ptr error;
  std::mutex mutex;
  const auto range = [&](int64_t w) noexcept {
    try {
      for (int64_t i = items * w / workers, end = items * (w + 1) / workers; i < end; ++i) body(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  int64_t w = 1;
  try {
    for (; w < workers; ++w) pool.emplace_back(range, w);
  } catch (const std::exception&) {
    // This thread does the ranges from w on itself.
  }
  if (items > 0) range(0);
  for (; w < workers; ++w) range(w);
  for (auto& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
}
