// Work shared by threads that live for one call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

// body(i) for i = 0 .. items - 1, in contiguous ranges, one for each thread.
template <class Body> void parallel(int64_t items, int64_t threads, const Body& body) {
    const int64_t workers = std::min(items, std::max<int64_t>(threads, 1));
    auto range = [&](int64_t w) {
        for (int64_t i = items * w / workers, end = items * (w + 1) / workers; i < end; ++i) body(i);
    };
    std::vector<std::thread> pool;
    for (int64_t w = 1; w < workers; ++w) pool.emplace_back(range, w);
    if (items > 0) range(0);
    for (auto& thread : pool) thread.join();
}
