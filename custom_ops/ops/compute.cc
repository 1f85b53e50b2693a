// From checked inputs to tasks for the threads of the session.
#include <atomic>
#include <cstdlib>
#include <new>

#include "../cpu/select.h"
#include "operator.h"

namespace onnxq {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Parts of a weight, which change how sums are rounded, are chosen by its shape alone; how columns and rows of results
// are divided changes no bit, and depends on how many CPUs there are to share the work.
void choose_parts(int64_t step, MatMul* job) {
  constexpr int64_t kMaxParts = 8, kMinPartRows = 256;
  const int64_t fit = job->weight.K / kMinPartRows, parts = fit < kMaxParts ? fit : kMaxParts;
  job->part_rows = parts > 1 ? round_up((job->weight.K + parts - 1) / parts, 32) : job->weight.K;
  job->parts = job->part_rows ? (job->weight.K + job->part_rows - 1) / job->part_rows : 1;
  const int64_t wanted = (2 * cpu_count() + job->parts - 1) / job->parts;  // blocks of columns
  job->columns = round_up((job->weight.N + wanted - 1) / wanted, step);
  if (job->columns < 512) job->columns = 512;
  if (job->columns > kMaxColumns) job->columns = kMaxColumns;
}

void choose_blocks(int64_t step, MatMul* job) {
  const int64_t blocks = (job->M + kMaxRows - 1) / kMaxRows;
  job->rows = (job->M + blocks - 1) / blocks;
  // Where there is little to compute, wide blocks read faster; else small ones share the work better.
  const int64_t wanted = cpu_count() * (job->rows <= 16 ? 1 : 4);
  const int64_t share = round_up((job->weight.N + wanted - 1) / wanted, step);
  const int64_t room = kMaxResults / job->rows / step * step;
  job->columns = share < room ? share : room;
  if (job->columns > kMaxColumns) job->columns = kMaxColumns;
}

struct MatMulRun {
  const MatMul* job;
  const Kernels* kernels;
  std::atomic<int64_t>* missing;  // parts of each block of columns

  static void task(void* user, size_t index) {
    const MatMulRun& self = *static_cast<const MatMulRun*>(user);
    const int64_t at = static_cast<int64_t>(index);
    self.kernels->matmul(*self.job, at);
    if (!self.job->parts) return;
    const int64_t block = at % self.job->column_blocks();
    if (self.missing[block].fetch_sub(1) == 1) self.kernels->finish(*self.job, block);
  }
};

OrtStatus* run_in_parts(const Kernel& kernel, const OrtKernelContext* context, MatMul* job) {
  const int64_t blocks = job->column_blocks();
  const size_t sums = static_cast<size_t>(job->parts * job->M * job->weight.N) * sizeof(float);
  static_assert(sizeof(std::atomic<int64_t>) % alignof(float) == 0, "sums follow the counters");
  void* memory = malloc(static_cast<size_t>(blocks) * sizeof(std::atomic<int64_t>) + sums);
  if (!memory) return kernel.api.error(ErrorCode::kFail, "onnxq %s: out of memory", kernel.op->name);
  std::atomic<int64_t>* missing = static_cast<std::atomic<int64_t>*>(memory);
  for (int64_t i = 0; i < blocks; ++i) new (missing + i) std::atomic<int64_t>(job->parts);
  job->sums = reinterpret_cast<float*>(missing + blocks);
  MatMulRun run{job, kernel.cpu, missing};
  OrtStatus* status = kernel.api.parallel_for(context, MatMulRun::task, static_cast<size_t>(job->tasks()), &run);
  free(memory);
  return status;
}

// A kernel may round activations where its operator lets it: where this CPU has instructions for it, values of the weight
// are integers times one number, and no block ends within a run of activations. One row alone would gain nothing.
bool rounds(const Kernel& kernel, int64_t M) {
  const bool whole_runs = kernel.block_size % kRoundedRun == 0 || kernel.block_size == kernel.shape.dims[0];
  return M > 1 && kernel.op->rounds && kernel.cpu->round_row && kernel.op->format->int8_unit > 0 && whole_runs;
}

struct RoundRun {
  const MatMul* job;
  const Kernels* kernels;

  static void task(void* user, size_t index) {
    const RoundRun& self = *static_cast<const RoundRun*>(user);
    self.kernels->round_row(*self.job, static_cast<int64_t>(index));
  }
};

// Rounds all activations into memory that the caller frees.
OrtStatus* round_activations(const Kernel& kernel, const OrtKernelContext* context, MatMul* job, void** memory) {
  const size_t runs = static_cast<size_t>(job->M * Rounded::runs(job->weight.K));
  *memory = malloc(runs * (sizeof(float) + sizeof(int32_t) + kRoundedRun));
  if (!*memory) return kernel.api.error(ErrorCode::kFail, "onnxq %s: out of memory", kernel.op->name);
  job->rounded.scale = static_cast<float*>(*memory);
  job->rounded.sum = reinterpret_cast<int32_t*>(job->rounded.scale + runs);
  job->rounded.values = reinterpret_cast<int8_t*>(job->rounded.sum + runs);
  RoundRun run{job, kernel.cpu};
  if (job->M > 8) return kernel.api.parallel_for(context, RoundRun::task, static_cast<size_t>(job->M), &run);
  for (int64_t m = 0; m < job->M; ++m) kernel.cpu->round_row(*job, m);  // sooner done than handed out
  return nullptr;
}

OrtStatus* multiply(const Kernel& kernel, const OrtKernelContext* context, MatMul* job) {
  if (job->M <= kernel.cpu->few_rows) {
    choose_parts(kernel.cpu->step, job);
    return run_in_parts(kernel, context, job);
  }
  choose_blocks(kernel.cpu->step, job);
  MatMulRun run{job, kernel.cpu, nullptr};
  return kernel.api.parallel_for(context, MatMulRun::task, static_cast<size_t>(job->tasks()), &run);
}

struct DequantizeRun {
  const Dequantize* job;
  const Kernels* kernels;

  static void task(void* user, size_t index) {
    const DequantizeRun& self = *static_cast<const DequantizeRun*>(user);
    self.kernels->dequantize(*self.job, static_cast<int64_t>(index));
  }
};

}  // namespace

OrtStatus* check_last_dimension(const Kernel& kernel, const Shape& x) {
  const int64_t K = kernel.shape.dims[0], last = x.rank ? x.dims[x.rank - 1] : 0;
  if (x.rank && last == K) return nullptr;
  return kernel.invalid("the last dimension of x is %lld; the weight has K = %lld", static_cast<long long>(last),
                        static_cast<long long>(K));
}

OrtStatus* compute_matmul(const Kernel& kernel, OrtKernelContext* context) {
  const Api& api = kernel.api;
  const int64_t K = kernel.shape.dims[0], N = kernel.shape.dims[1];
  const OrtValue* x = nullptr;
  Shape shape;
  ONNXQ_RETURN_IF_ERROR(api.input(context, 0, &x));
  ONNXQ_RETURN_IF_ERROR(api.shape(x, &shape));
  ONNXQ_RETURN_IF_ERROR(check_last_dimension(kernel, shape));
  Inputs inputs;
  ONNXQ_RETURN_IF_ERROR(read_inputs(kernel, context, &inputs));
  MatMul job{};
  job.type = *float_type(kernel.op->type);
  job.bias = inputs.bias;
  ONNXQ_RETURN_IF_ERROR(api.data(x, &job.x));
  job.weight = {kernel.op->format, inputs.packed,     K, N, kernel.block_size, inputs.scale,
                inputs.scale_type, inputs.scale_per_column, inputs.zero_point};
  shape.dims[shape.rank - 1] = 1;
  job.M = shape.elements();
  shape.dims[shape.rank - 1] = N;
  ONNXQ_RETURN_IF_ERROR(api.output(context, 0, shape, &job.y));
  if (job.M == 0 || N == 0) return nullptr;
  if (!rounds(kernel, job.M) || K == 0) return multiply(kernel, context, &job);
  void* memory = nullptr;
  OrtStatus* status = round_activations(kernel, context, &job, &memory);
  if (!status) status = multiply(kernel, context, &job);
  free(memory);
  return status;
}

OrtStatus* compute_dequantize(const Kernel& kernel, OrtKernelContext* context) {
  const Api& api = kernel.api;
  Inputs inputs;
  ONNXQ_RETURN_IF_ERROR(read_inputs(kernel, context, &inputs));
  Dequantize job{};
  ONNXQ_RETURN_IF_ERROR(api.output(context, 0, kernel.shape, &job.y));
  if (kernel.shape.elements() == 0) return nullptr;
  job.format = kernel.op->format;
  job.packed = inputs.packed;
  job.outer = job.inner = 1;
  for (size_t i = 0; i < kernel.shape.rank; ++i) {
    const int64_t dim = kernel.shape.dims[i], axis = kernel.axis, at = static_cast<int64_t>(i);
    (at < axis ? job.outer : at == axis ? job.length : job.inner) = at == axis ? dim
                                                                  : at < axis  ? job.outer * dim
                                                                               : job.inner * dim;
  }
  job.block = kernel.block_size;
  job.scale = inputs.scale;
  job.scale_type = inputs.scale_type;
  job.one_scale = !inputs.scale_per_column;
  job.zero_point = inputs.zero_point;
  job.type = *float_type(kernel.op->type);
  constexpr int64_t kTaskElements = 1 << 16;
  const int64_t row = job.inner == 1 ? job.block : job.inner;
  job.rows = row < kTaskElements ? kTaskElements / row : 1;
  DequantizeRun run{&job, kernel.cpu};
  return api.parallel_for(context, DequantizeRun::task, static_cast<size_t>(job.tasks()), &run);
}

}  // namespace onnxq
