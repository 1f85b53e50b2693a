// The CPU kernels, one set for each instruction set, and what they work on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format.h"

#if defined(_MSC_VER)
#define ONNXQ_NOINLINE __declspec(noinline)
#define ONNXQ_INLINE __forceinline
#else
#define ONNXQ_NOINLINE __attribute__((noinline))  // loops of their own keep more in registers
// What those loops are made of. GCC takes out calls of a function that does nothing but prefetch, unless it is inlined early.
#define ONNXQ_INLINE inline __attribute__((always_inline))
#endif

namespace onnxq {

// Types of activations, scales and results.
enum class Float : uint8_t { kFloat32, kFloat16, kBFloat16 };

inline size_t size_of(Float type) { return type == Float::kFloat32 ? 4 : 2; }

// A [K, N] weight: codes in row-major order as one dense stream, and a scale for each block of `block` rows.
struct Weight {
  const Format* format;
  const uint8_t* packed;
  int64_t K, N, block;
  const void* scale;  // [ceil(K / block), N], or [ceil(K / block), 1]
  Float scale_type;
  bool scale_per_column;
  const uint8_t* zero_point;  // packed codes in the order of the scales, or null
};

constexpr int64_t kRoundedRun = 32;  // activations of a row that share a scale

// Rows of activations as int8 times a scale: [M, runs * kRoundedRun], zeros where K ends within a run, and for each run
// its scale and the sum of its integers, [M, runs].
struct Rounded {
  int8_t* values;  // null where activations are not rounded
  float* scale;
  int32_t* sum;

  static int64_t runs(int64_t K) { return (K + kRoundedRun - 1) / kRoundedRun; }
};

// y [M, N] = x [M, K] @ weight, plus a bias.
//
// A few rows of x cost as much as reading the weight, and memory is fastest where a thread reads one long stretch: a task
// then makes the sums of `part_rows` rows of the weight, and once all parts of some columns are there, `finish` adds
// them up. Where there are more rows of x, a task makes `rows` x `columns` results from all rows of the weight.
struct MatMul {
  Weight weight;
  const void* x;
  Rounded rounded;
  void* y;
  Float type;
  const void* bias;  // [N], or null
  int64_t M;
  int64_t columns;    // of a block, a multiple of Kernels::step
  int64_t rows;       // of a block, where there are no parts
  int64_t parts;      // 0 where tasks make results
  int64_t part_rows;  // of the weight
  float* sums;        // [parts, M, N]

  int64_t column_blocks() const { return (weight.N + columns - 1) / columns; }
  int64_t row_blocks() const { return parts ? 1 : (M + rows - 1) / rows; }
  int64_t tasks() const { return (parts ? parts : row_blocks()) * column_blocks(); }
};

// A tensor of dims [outer, length, inner], with scales for blocks along `length`; a task makes `rows` of its rows: rows
// of `inner` elements, or the blocks themselves where inner is 1.
struct Dequantize {
  const Format* format;
  const uint8_t* packed;
  int64_t outer, length, inner, block;
  const void* scale;  // [outer, ceil(length / block), inner], or one in all
  Float scale_type;
  bool one_scale;
  const uint8_t* zero_point;
  void* y;
  Float type;
  int64_t rows;

  int64_t groups() const { return (length + block - 1) / block; }
  int64_t row_count() const { return outer * (inner == 1 ? groups() : length); }
  int64_t tasks() const { return (row_count() + rows - 1) / rows; }
};

struct Kernels {
  const char* name;
  int64_t step;      // columns that are decoded together: blocks of columns are multiples of it
  int64_t few_rows;  // up to so many rows of x are multiplied in parts
  void (*matmul)(const MatMul&, int64_t task);
  void (*finish)(const MatMul&, int64_t column_block);
  void (*dequantize)(const Dequantize&, int64_t task);
  void (*round_row)(const MatMul&, int64_t m);  // fills a row of MatMul::rounded; null where that makes nothing faster
};

constexpr int64_t kMaxColumns = 4096;       // of a block
constexpr int64_t kMaxRows = 128;           // of a block of results
constexpr int64_t kMaxResults = 128 * 128;  // of a block of results

// From the fastest to plain C++; a build has those that its compiler knows.
extern const Kernels kVbmiKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kPlainKernels;

}  // namespace onnxq
