// MatMul<F>Tiled and its relatives on CUDA: a weight in the layout `tiled2`, multiplied by kernels that somebody else compiled.
#pragma once

#include "../gpu/product.h"
#include "operator.h"

namespace onnxq {

// A weight for which kernels are wanted.
struct Request {
  int32_t device;  // -1: the current one
  int32_t format;  // its place in kFormats
  ElementType type;
  ElementType scale_type;
  int32_t group;
  int32_t zero_points;
  int32_t gated;   // strips of 16 columns are gate and up in turn
  int32_t lookup;  // columns are looked up, and nothing multiplied
  int64_t K, N;
};

// Fills in the kernels and returns 0, or writes a message.
using Compiler = int (*)(const Request* request, gpu::Kernels* kernels, char* message, size_t size);
void set_compiler(Compiler compiler);

OrtStatus* create_tiled(const OrtCustomOp* op, OrtApi api, const OrtKernelInfo* info, void** kernel);
OrtStatus* compute_tiled(void* kernel, OrtKernelContext* context);

}  // namespace onnxq
