// Sparse inference for spiking networks: weights that are zero cost nothing, spikes stay packed in bits.
//
// This file runs programs: it deals out items of work to threads, operation by operation. The operations themselves
// stand in engine_*.cpp, one file each, and register themselves (engine_tile.h).
#include "engine.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "abi.h"
#include "engine_tile.h"
#include "status.h"

namespace engine {
namespace {

std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;  // made at first use: files register before anything else of this file exists
  return all;
}

// Work is cut into items that any thread may take: tiles, and ranges of output channels where tiles are few.
struct Items {
  const Kernel& kernel;
  int64_t tiles, ranges;
  Items(const Job& job, int threads) : kernel(kernels()[size_t(job.op.code)]), tiles(kernel.tiles(job)) {
    const int64_t wanted = threads > 1 ? 2 * threads : 1;
    ranges = std::min<int64_t>(job.op.channels, std::max<int64_t>(1, (wanted + tiles - 1) / tiles));
  }
  int64_t count() const { return tiles * ranges; }
  void work(const Job& job, int64_t item, char* scratch) const {
    const int64_t size = (job.op.channels + ranges - 1) / ranges;
    const int from = int(item % ranges * size), to = int(std::min<int64_t>(job.op.channels, from + size));
    kernel.work(job, item / ranges, from, to, scratch);
  }
};

// Threads of one call meet here between operations. They sleep while waiting: on a busy machine a spinning thread
// takes the core from the one it waits for.
class Meeting {
 public:
  // Threads that were started early wait here until it is known how many could be started.
  void arrive() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_.wait(lock, [&] { return members_ > 0; });
  }
  void begin(int members) {
    std::unique_lock<std::mutex> lock(mutex_);
    members_ = members;
    all_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == members_) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  int members_ = 0;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

// Bytes of a buffer. Everything inside of it is addressed by 64-bit products of 32-bit sizes; they must not overflow.
int64_t buffer_bytes(const SpBuffer& b, int64_t T, int64_t images) {
  if (b.channels < 0 || b.height < 0 || b.width < 0 || b.pad < 0 || T < 1 || images < 1)
    throw std::invalid_argument("a buffer has a negative size");
  int64_t bytes = b.kind == SP_WORDS ? int64_t(sizeof(Word)) : int64_t(sizeof(float));
  const int64_t rows = int64_t(b.height) + 2 * int64_t(b.pad), columns = int64_t(b.width) + 2 * int64_t(b.pad);
  for (const int64_t factor : {int64_t(b.channels), T, images, rows, columns})
    if (__builtin_mul_overflow(bytes, factor, &bytes)) throw TooLarge();
  if (bytes > std::numeric_limits<int64_t>::max() / 4) throw TooLarge();
  const View view(b, T, images, 0, images);
  return view.channel * b.channels * (b.kind == SP_WORDS ? int64_t(sizeof(Word)) : int64_t(sizeof(float))) + kSlack;
}

// Refuses a program whose operations name kernels, buffers or channels that do not exist.
void check(const SpOp* ops, int n_ops, const SpBuffer* buffers, int n_buffers, int64_t T, int64_t images,
           int64_t chunk) {
  for (int i = 0; i < n_buffers; ++i)
    buffer_bytes(buffers[i], T, buffers[i].kind == SP_WORDS || buffers[i].kind == SP_REAL ? chunk : images);
  for (int i = 0; i < n_ops; ++i) {
    const SpOp& op = ops[i];
    if (op.code < 0 || op.code >= int(kernels().size())) throw std::invalid_argument("unknown operation");
    if (op.in < 0 || op.in >= n_buffers) throw std::invalid_argument("an operation without input");
    for (const int32_t index : {op.spikes, op.real, op.residual})
      if (index < -1 || index >= n_buffers) throw std::invalid_argument("an operation names no buffer");
    // The kernels count a tile's columns and segments in int.
    const int64_t columns = int64_t(buffers[op.in].channels) * op.kernel_h * op.kernel_w;
    if (columns > std::numeric_limits<int32_t>::max() / (kTile * kMaxBlock)) throw TooLarge();
  }
}

void run(const SpOp* ops, int n_ops, const SpBuffer* buffers, int64_t T, int64_t images, int64_t chunk, int threads) {
  const int64_t chunks = (images + chunk - 1) / chunk;
  int64_t bytes = kSlack;
  for (int i = 0; i < n_ops; ++i) {
    const Job job(ops[i], buffers, T, chunk, 0, images);
    bytes = std::max(bytes, kernels()[size_t(ops[i].code)].scratch(job));
  }
  bytes = (bytes + 63) / 64 * 64;
  std::unique_ptr<char, void (*)(void*)> scratch((char*)std::aligned_alloc(64, size_t(bytes * threads)), std::free);
  if (!scratch) throw std::bad_alloc();
  std::vector<std::atomic<int64_t>> next(size_t(chunks * n_ops));
  Meeting meeting;
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto member = [&](int id) {
    for (int64_t first = 0, round = 0; first < images; first += chunk)
      for (int i = 0; i < n_ops; ++i, ++round) {
        try {
          const Job job(ops[i], buffers, T, chunk, first, images);
          const Items items(job, threads);
          for (int64_t item; !failed && (item = next[size_t(round)].fetch_add(1)) < items.count();)
            items.work(job, item, scratch.get() + id * bytes);
        } catch (...) {  // the others still wait at the meeting, so this thread must come there too
          if (!failed.exchange(true)) error = std::current_exception();
        }
        if (threads > 1) meeting.wait();
      }
  };
  std::vector<std::thread> others;
  try {
    others.reserve(size_t(threads));
    for (int id = 1; id < threads; ++id)
      others.emplace_back([&member, &meeting, id] {
        meeting.arrive();
        member(id);
      });
  } catch (const std::exception&) {
    // The system gives no more threads: those that started do all the work.
  }
  meeting.begin(int(others.size()) + 1);
  member(0);
  for (auto& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace

Register::Register(const Kernel& kernel) { kernels().push_back(kernel); }

}  // namespace engine

extern "C" {

const char* engine_abi(void) {
  static const Abi abi({{"SpBuffer", sizeof(SpBuffer)},
                        {"SpBuffer.channels_last", offsetof(SpBuffer, channels_last)},
                        {"SpNeuron", sizeof(SpNeuron)},
                        {"SpNeuron.soft", offsetof(SpNeuron, soft)},
                        {"SpOp", sizeof(SpOp)},
                        {"SpOp.first_event", offsetof(SpOp, first_event)},
                        {"SpOp.weights", offsetof(SpOp, weights)},
                        {"SpOp.neuron", offsetof(SpOp, neuron)},
                        {"SpPair", sizeof(SpPair)},
                        {"SpPair.second", offsetof(SpPair, second)},
                        {"SpWeight", sizeof(SpWeight)},
                        {"SpEvent", sizeof(SpEvent)},
                        {"words", SP_WORDS},
                        {"real", SP_REAL},
                        {"external", SP_EXTERNAL},
                        {"static", SP_STATIC}});
  return abi.text();
}

int32_t sp_lanes(void) { return engine::kLanes; }

int32_t sp_block(int32_t T) { return T < 1 ? 0 : engine::block_steps(T); }

int32_t sp_code(const char* name) {
  const auto& all = engine::kernels();
  for (size_t i = 0; i < all.size(); ++i)
    if (std::strcmp(all[i].name, name) == 0) return int32_t(i);
  return -1;
}

int64_t sp_bytes(const SpBuffer* buffer, int64_t T, int64_t images) {
  int64_t bytes = -1;
  guarded([&] { bytes = engine::buffer_bytes(*buffer, T, images); });
  return bytes;
}

int32_t sp_run(const SpOp* ops, int32_t n_ops, const SpBuffer* buffers, int32_t n_buffers, int64_t T, int64_t images,
               int64_t chunk, int32_t threads) {
  return guarded([&] {
    if (n_ops < 0 || T < 1 || images < 1 || chunk < 1) throw std::invalid_argument("nothing to run");
    engine::check(ops, n_ops, buffers, n_buffers, T, images, chunk);
    engine::run(ops, n_ops, buffers, T, images, chunk, threads < 1 ? 1 : threads);
  });
}
}
