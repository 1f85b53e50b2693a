// Shapes of results, before anything runs.
#include "operator.h"

namespace onnxq {

OrtStatus* infer_shape(const OrtCustomOp* custom, OrtShapeInferContext* context) {
  const Operator& op = *static_cast<const Operator*>(custom);
  const Api api = global_api();
  Shape weight, result;
  const char* names[Shape::kMaxRank] = {};
  // What is wrong is said when the kernel is made, with the name of the node.
  if (!api.inferred_attribute(context, "shape", &weight)) return nullptr;
  ElementType type = op.type;
  if (op.family == Family::kDequantize) {
    result = weight;
  } else {
    OrtStatus* status = api.inferred_input(context, op.is_lookup() ? op.weight_end() : 0, &result, names, &type);
    const bool room = op.is_lookup() ? result.rank < Shape::kMaxRank : result.rank > 0;
    if (status || !room || weight.rank != 2) {
      api.ignore(status);
      return nullptr;
    }
    // What is looked up has one dimension more than the indices; the last of a product is another.
    if (op.is_lookup()) ++result.rank;
    result.dims[result.rank - 1] = op.is_lookup() ? weight.dims[0] : op.result_columns(weight.dims[1]);
    names[result.rank - 1] = "";
  }
  int64_t dtype = 0;
  // Where no input has the type of the result, the attribute decides which kernel onnxruntime takes.
  if (!op.is_product() && api.inferred_attribute(context, "dtype", &dtype)) type = static_cast<ElementType>(dtype);
  for (size_t axis = 0; axis < result.rank; ++axis) {
    if (!names[axis]) names[axis] = "";
    // onnxruntime would take a dimension that has neither a size nor a name for the size -1.
    if (result.dims[axis] < 0 && !*names[axis]) return nullptr;
  }
  return api.set_inferred_output(context, result, names, type);
}

}  // namespace onnxq
