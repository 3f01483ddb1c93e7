// The plain C interface of the training kernels; runtime/structs.py mirrors it, and `fuse_abi` is compared with that.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum FuseType : int32_t { FUSE_FLOAT32 = 0, FUSE_BFLOAT16 = 1, FUSE_FLOAT64 = 2 };    // elements of a tensor
enum FuseCurve : int32_t { FUSE_ATAN = 0, FUSE_SIGMOID = 1, FUSE_CLAMPED_TANH = 2 };  // surrogates
enum FusePool : int32_t { FUSE_NO_POOL = 0, FUSE_MAX = 1, FUSE_AVG = 2 };             // of spikes over 2x2 positions

struct FuseSpec {
  int64_t T, N, C, P, W;  // W: width of a map; read where there is pooling
  int32_t channels_last;  // layout of y, spikes and gradients
  int32_t per_step;       // scale, shift and sums are [T][C] instead of [C]; never with `is_static`
  int32_t is_static;      // the input is the same at all T steps, so y holds it once
  int32_t surrogate;      // FuseCurve
  int32_t smooth;         // fire the surrogate's own curve instead of spikes (for checks of the gradient)
  int32_t strict;         // h == v_threshold does not fire
  int32_t detach_reset;   // no gradient through the reset
  int32_t threads;
  int32_t pool;  // FusePool; channels last and even maps only
  double decay, gain, offset, v_threshold, reset_scale, reset_shift, v_start, alpha;
};

// A convolution of stride 1, no dilation, one group. `*_last`: channels last in memory. weight strides: of output and
// input channel; a tap (i, j) is at (i * kernel_w + j) * tap_stride.
struct EventSpec {
  int64_t M, in, H, W, out, out_H, out_W, kernel_h, kernel_w, pad_h, pad_w;
  int64_t out_stride, in_stride, tap_stride;
  int64_t x_last, y_last, threads;
};
}
