// An operator of the domain `onnxq` as onnxruntime sees it, and its kernel on the CPU; tiled.h has that of a GPU.
#pragma once

#include "../cpu/kernels.h"
#include "../ort/api.h"

namespace onnxq {

enum class Family : uint8_t { kMatMul, kLinear, kDequantize, kTiledMatMul, kTiledLinear, kTiledSwiGLU, kTiledGather };

// One operator for one type of result: MatMul<F>(x, packed, scale[, zero_point]),
// Linear<F>(x, packed, scale[, zero_point], bias) or Dequantize<F>(packed, scale[, zero_point]); on a GPU
// MatMul<F>Tiled and Linear<F>Tiled with the same inputs, SwiGLU<F>Tiled with those of the first, and
// Gather<F>Tiled(packed, scale[, zero_point], indices).
struct Operator : OrtCustomOp {
  static constexpr size_t kMaxName = 40;

  char name[kMaxName];
  Family family;
  bool asymmetric;  // has zero points
  bool rounds;      // activations to int8, where that is faster
  ElementType type;
  const Format* format;

  constexpr bool is_lookup() const { return family == Family::kTiledGather; }
  bool is_product() const { return family != Family::kDequantize && !is_lookup(); }
  size_t packed_index() const { return is_product() ? 1 : 0; }
  size_t weight_end() const { return packed_index() + (asymmetric ? 3 : 2); }  // there stand bias or indices
  constexpr bool has_bias() const { return family == Family::kLinear || family == Family::kTiledLinear; }
  constexpr bool is_tiled() const { return family >= Family::kTiledMatMul; }
  constexpr bool is_gated() const { return family == Family::kTiledSwiGLU; }
  int64_t result_columns(int64_t columns) const { return is_gated() ? columns / 2 : columns; }
  size_t input_count() const { return weight_end() + (has_bias() || is_lookup() ? 1 : 0); }
};

// onnxruntime's functions for callbacks that are not given them; set once.
Api global_api();

// What a node states about its weight, and what runs it.
struct Kernel {
  Api api;
  const Operator* op;
  Shape shape;         // of the weight
  int64_t axis = 0;    // along which scales change
  int64_t block_size;  // neighbours along it that share a scale
  const Kernels* cpu;
  char node[128];

  // An error that begins with the operator and the node.
  OrtStatus* invalid(const char* format, ...) const
#if defined(__GNUC__)
      __attribute__((format(printf, 2, 3)))
#endif
      ;
};

// Codes, scales and zero points, checked against each other.
struct Inputs {
  const uint8_t* packed = nullptr;
  const void* scale = nullptr;
  Float scale_type = Float::kFloat32;
  bool scale_per_column = true;
  const uint8_t* zero_point = nullptr;
  const void* bias = nullptr;
};

// Null where onnxruntime's type is none of ours.
const Float* float_type(ElementType type);
const char* type_name(ElementType type);

OrtStatus* create_kernel(const OrtCustomOp* op, OrtApi api, const OrtKernelInfo* info, void** kernel);
OrtStatus* compute(void* kernel, OrtKernelContext* context);
void destroy_kernel(void* kernel);
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context);

// Attributes, checked; and what checks of inputs are made of.
OrtStatus* read_attributes(const OrtKernelInfo* info, Kernel* kernel);
Shape group_shape(const Kernel& kernel);  // of scales: that of the weight with the axis in blocks
void write_shape(const Shape& shape, char* text, size_t size);

OrtStatus* check_last_dimension(const Kernel& kernel, const Shape& x);
OrtStatus* check_bias(const Kernel& kernel, const OrtValue* value);

OrtStatus* read_inputs(const Kernel& kernel, OrtKernelContext* context, Inputs* inputs);
OrtStatus* compute_matmul(const Kernel& kernel, OrtKernelContext* context);
OrtStatus* compute_dequantize(const Kernel& kernel, OrtKernelContext* context);

}  // namespace onnxq
