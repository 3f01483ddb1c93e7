// The plain C interface of the sparse inference engine. runtime/structs.py mirrors these structs with ctypes; what
// `engine_abi` says of them is compared with the mirror when the library is loaded.
//
// A program is a list of operations on buffers. Images run through it in chunks, so that what one operation writes is
// still in cache when the next one reads it.
//
// Spikes are packed over time: one 16-bit word per neuron holds `block` steps in fields of two bits (values 0 to 3: a
// spike, or a sum of up to three). With T > block there are several words, one per block of time.
// Layouts, n images of a chunk: words [C][blocks][n][H + 2 pad][W + 2 pad], reals [C][T][n][H + 2 pad][W + 2 pad];
// padding is always zero. External tensors: float [T][N][C][H][W], or without T (static: the same at every step).
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum SpKind : int32_t { SP_WORDS = 0, SP_REAL = 1, SP_EXTERNAL = 2, SP_STATIC = 3 };

struct SpBuffer {
  void* data;
  int32_t kind, channels, height, width, pad;
  int32_t channels_last;  // external tensors only: [T][N][H][W][C]
};

// Two kept weights and where their inputs stand in the tile. Half of the memory traffic of one image is reading these.
struct SpPair {
  float a, b;
  uint16_t first, second;
};
struct SpWeight {
  float value;
  int32_t column;
};

struct SpEvent {
  float value;
  uint32_t row;
};

// v_pre = decay * v + current; spike = v_pre >= threshold; then v = reset (hard) or v_pre + reset (soft, reset < 0).
// A neuron that fires at > instead is given the next larger float as its threshold.
struct SpNeuron {
  const float *decay, *threshold, *reset, *start;  // per channel
  int32_t soft, unused;
};

struct SpOp {
  int32_t code;              // what sp_code gives for the operation's name
  int32_t in, spikes, real;  // buffers: input; where spikes and the real result go (-1: nowhere)
  int32_t residual, unused;  // buffer added before the neuron (-1: none)
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int32_t channels, height, width, first_event;  // of the output; first_event: a column of the tile
  const float *scale, *bias;  // per output channel: scale * x + bias, x the input or a conv's sum (scale null: 1)
  const float *post_scale, *post_bias;  // affine between the real output and the neuron (null: none)
  const int32_t* starts;                // channels + 1 row starts into pairs or weights
  const int32_t* map;                   // pointwise: the input's channel for each output channel (null: the same)
  const SpPair* pairs;
  const int32_t*
      event_starts;  // lookup: per tile column from `first_event` on, its weights' start in events (null: none)
  const SpEvent* events;
  const SpWeight* weights;
  SpNeuron neuron;
};

const char* engine_abi(void);       // sizes, offsets and codes (abi.h)
int32_t sp_lanes(void);             // floats in a vector
int32_t sp_block(int32_t T);        // steps per word
int32_t sp_code(const char* name);  // number of an operation, -1 if there is none of that name
// Memory that a buffer needs, slack included; -1 if its size does not fit.
int64_t sp_bytes(const SpBuffer* buffer, int64_t T, int64_t images);
// Runs `ops` for `images` images in chunks of `chunk` with `threads` threads. Returns a status (status.h).
int32_t sp_run(const SpOp* ops, int32_t n_ops, const SpBuffer* buffers, int32_t n_buffers, int64_t T, int64_t images,
               int64_t chunk, int32_t threads);
}
