// From checked inputs to tasks for the threads of the session.
#include "../cpu/select.h"
#include "operator.h"

namespace onnxq {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// How wide and high the blocks of results are: as wide as buffers allow, since a thread then reads long stretches of a
// row of weights, but four for each CPU where there are that many columns. How columns are divided changes no result.
void choose_blocks(const Kernels& cpu, MatMul* job) {
  const int64_t blocks = (job->M + kMaxRows - 1) / kMaxRows;
  job->rows = (job->M + blocks - 1) / blocks;
  const int64_t share = round_up((job->weight.N + 4 * cpu_count() - 1) / (4 * cpu_count()), cpu.step);
  const int64_t room = job->rows <= 4 ? cpu.max_columns : kMaxResults / job->rows / cpu.step * cpu.step;
  job->columns = share < room ? share : room < cpu.max_columns ? room : cpu.max_columns;
}

template <class Job>
struct Run {
  const Job* job;
  void (*function)(const Job&, int64_t);

  static void task(void* user, size_t index) {
    const Run& self = *static_cast<const Run*>(user);
    self.function(*self.job, static_cast<int64_t>(index));
  }
};

template <class Job>
OrtStatus* run(const Api& api, const OrtKernelContext* context, const Job& job, void (*function)(const Job&, int64_t)) {
  Run<Job> each{&job, function};
  return api.parallel_for(context, &Run<Job>::task, static_cast<size_t>(job.tasks()), &each);
}

}  // namespace

OrtStatus* compute_matmul(const Kernel& kernel, OrtKernelContext* context) {
  const Api& api = kernel.api;
  const int64_t K = kernel.shape.dims[0], N = kernel.shape.dims[1];
  const OrtValue* x = nullptr;
  Shape shape;
  ONNXQ_RETURN_IF_ERROR(api.input(context, 0, &x));
  ONNXQ_RETURN_IF_ERROR(api.shape(x, &shape));
  if (shape.rank == 0 || shape.dims[shape.rank - 1] != K) {
    return kernel.invalid("the last dimension of x is %lld; the weight has K = %lld",
                          shape.rank ? static_cast<long long>(shape.dims[shape.rank - 1]) : 0LL,
                          static_cast<long long>(K));
  }
  Inputs inputs;
  ONNXQ_RETURN_IF_ERROR(read_inputs(kernel, context, &inputs));
  MatMul job{};
  job.type = *float_type(kernel.op->type);
  ONNXQ_RETURN_IF_ERROR(api.data(x, &job.x));
  job.weight = {kernel.op->format, inputs.packed,     K, N, kernel.block_size, inputs.scale,
                inputs.scale_type, inputs.scale_per_column, inputs.zero_point};
  shape.dims[shape.rank - 1] = 1;
  job.M = shape.elements();
  shape.dims[shape.rank - 1] = N;
  ONNXQ_RETURN_IF_ERROR(api.output(context, 0, shape, &job.y));
  if (job.M == 0 || N == 0) return nullptr;
  choose_blocks(*kernel.cpu, &job);
  return run(api, context, job, kernel.cpu->matmul);
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
  return run(api, context, job, kernel.cpu->dequantize);
}

}  // namespace onnxq
