// A product y[M, N] = x[M, K] @ W on a GPU: kernels that were compiled for it, and how they are launched.
//
// Python compiles (CuPy) and hands over what stands here; onnxq/runtime/cuda/interface.py declares the same structs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq::gpu {

// A compiled matmul_stream or matmul_tile with the numbers that it was compiled for.
struct Kernel {
  void* function;    // CUfunction
  int64_t max_rows;  // of x that it is meant for
  int32_t is_tile;
  int32_t rows;     // columns of W that a block computes
  int32_t columns;  // rows of x that a block computes
  int32_t split;    // blocks that share K
  int32_t along_k;  // units of 128 k that a stage holds
  int32_t block;    // threads
  int32_t shared_bytes;
};

// All that a weight needs, for every number of rows of x.
struct Kernels {
  static constexpr int kMax = 24;
  Kernel each[kMax];  // by growing max_rows
  int32_t count;
  void* split_float32;  // CUfunctions of pieces.cu; null unless x is float32
  void* sum_pieces;     // or gate_pieces
  void* look_up;        // of lookup.cu; then there are no others

  const Kernel* for_rows(int64_t rows) const;
};

// A weight in the layout `tiled2`, on the GPU.
struct Weight {
  int64_t K, N;
  int32_t unit_bytes;   // of 16 x 128 packed weights
  int32_t scale_bytes;  // of one scale
  int32_t group;        // rows of K that share a scale; 0 for all of them
  int32_t zero_points;  // whether it has some
  const void* packed;   // [N / 16, ceil(K / 128), unit_bytes]
  const void* scale;    // [groups, N]
  const void* zero;     // uint8 [groups, N], or null
};

// Columns of W that become rows of y.
struct Lookup {
  const void* indices;  // [count]; what lies outside of -columns ... columns - 1 gives zeros
  void* y;              // [count, K]
  int64_t count;
  int64_t columns;  // of W that are no filling
  void* stream;     // CUstream
  int32_t wide;     // indices are int64, not int32
};

struct Rows {
  const void* x;     // [M, K] of 16-bit floats
  const void* bias;  // [N] of the type of y, or null
  void* y;           // [M, N]
  int64_t M;
  void* stream;   // CUstream
  int32_t early;  // the weight is not written by a kernel: it may be read before the kernels before this one are done
};

// Puts the product on the stream. What went wrong is written to `message`; the result says whether nothing did.
bool multiply(const Kernel& kernel, const Weight& weight, const Rows& rows, char* message, size_t size);

bool look_up(void* function, const Weight& weight, const Lookup& lookup, char* message, size_t size);

// For float32 activations: x as three bfloat16 each, pieces[3][count]; and y[M, N], the sum of sums[3][M, N] and bias.
bool split_float32(const Kernels& kernels, const void* x, void* pieces, int64_t count, void* stream, char* message,
                   size_t size);
bool sum_pieces(const Kernels& kernels, const void* sums, const Rows& rows, int64_t N, char* message, size_t size);

}  // namespace onnxq::gpu
