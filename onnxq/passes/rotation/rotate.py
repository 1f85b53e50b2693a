"""The step `rotate`: rotations in the residual stream, within attention heads, and in front of products."""

from dataclasses import replace
from functools import partial

import numpy as np

from onnxq.formats import get_format
from onnxq.methods.equalize.choose import Rounding
from onnxq.methods.equalize.rotation import padded_size, rotation
from onnxq.methods.ranges import round_to, scale_of
from onnxq.methods.solve import rtn
from onnxq.model.load import Model
from onnxq.model.opset import obstacle_to
from onnxq.model.save import Staging
from onnxq.model.shapes import Shapes
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.finish import finish
from onnxq.passes.form import grid_spec
from onnxq.passes.rotation.choice import Place, Roundings, choose_places, costs_of
from onnxq.passes.rotation.fold import Folding
from onnxq.passes.rotation.linear import Linear, find_linears
from onnxq.passes.rotation.places import Heads, find_heads, find_products
from onnxq.passes.rotation.stream import Refused, Stream, find_streams
from onnxq.passes.rounding.plan import plan_activations
from onnxq.passes.step import Change, Context, rewritten
from onnxq.passes.target import FUNCTION_IR_VERSION, FUNCTION_OPSET
from onnxq.recipes import ActivationSpec, QuantSpec, Rotate
from onnxq.statistics.sample import sample_rows

# Of each activation, to try rotations out on.
_ROWS = 512


def rotate(model: Model, step: Rotate, context: Context) -> tuple[Model, list[Change]]:
    """Rotate a float model; its function stays the same.

    Raises:
        UsageError, DataError, NonFiniteError, SessionError, OutputError: As `Context.statistics` and `rewritten`.
    """
    name = step.describe()
    places, refused = find_places(model, step)
    changes = [Change(name, each.place, reason=each.reason) for each in refused]
    reasons: list[str | None] = [None] * len(places)
    if step.choose and places:
        data = context.data(model, name)
        inputs = [linear for place in places for linear in (*place.before, *place.behind)]
        widths = {str(linear.x.name): linear.weight.shape[0] for linear in inputs}
        costs = costs_of(places, sample_rows(model, widths, data, _ROWS), roundings(model, context))
        reasons = choose_places(places, costs)
    chosen = Folding()
    for place, reason in zip(places, reasons, strict=True):
        changes.append(Change(name, place.name, None if reason else place.done, reason))
        if reason is None:
            place.put(chosen)
    if all(each.done is None for each in changes):
        return model, changes

    def edit(model: Model, staging: Staging) -> bool:
        chosen.write(model.ir, staging)
        finish(model.ir, FUNCTION_OPSET if obstacle_to(model.ir, FUNCTION_OPSET) is None else 0, FUNCTION_IR_VERSION)
        return True

    return rewritten(model, edit, context.folder), changes


def find_places(model: Model, step: Rotate) -> tuple[list[Place], list[Refused]]:
    """Where a step could rotate a model, and where not; streams come last."""
    graph, shapes, weights = model.ir.graph, Shapes(model.ir), find_weights(model.ir)
    linears = find_linears(graph, weights)
    streams = find_streams(graph, shapes, linears, weights)
    heads = find_heads(linears, shapes)
    products = find_products(
        linears,
        shapes,
        [each for each in streams if isinstance(each, Stream)],
        [each for each in heads if isinstance(each, Heads)],
    )
    found: list[Place | Refused] = []
    if "value" in step.sites:
        found += [_in_heads(each, step.seed) if isinstance(each, Heads) else each for each in heads]
    if "online" in step.sites:
        found += [_online(each, step.seed, shapes) for each in products]
    if "residual" in step.sites:
        found += [_in_stream(each, step.seed) if isinstance(each, Stream) else each for each in streams]
    if (old := obstacle_to(model.ir, FUNCTION_OPSET)) is not None:
        found = [Refused(each.name, old) if isinstance(each, Place) and each.online else each for each in found]
    places = [each for each in found if isinstance(each, Place)]
    return places, [each for each in found if isinstance(each, Refused)]


def _in_stream(stream: Stream, seed: int) -> Place | Refused:
    turn = rotation(stream.width, seed, keep_mean=stream.keeps_mean)
    if turn is None:
        return _odd(stream.name, stream.width)
    return Place(
        name=stream.name,
        done="residual stream rotated",
        put=lambda folding: folding.rotate_stream(stream, turn),
        before=tuple(linear for linear, _ in stream.readers),
        behind=stream.linears,
        online=bool(stream.entries or stream.exits),
    )


def _in_heads(heads: Heads, seed: int) -> Place | Refused:
    turn = rotation(heads.width, seed)
    if turn is None:
        return _odd(str(heads.output.x.name), heads.width)
    return Place(
        name=str(heads.output.x.name),
        done="values rotated within heads",
        put=lambda folding: folding.rotate_heads(heads, turn),
        before=(heads.output,),
        behind=(heads.value,),
    )


def _online(linear: Linear, seed: int, shapes: Shapes) -> Place | Refused:
    name, width = str(linear.x.name), linear.weight.shape[0]
    turn = rotation(padded_size(width), seed)
    if turn is None:
        return _odd(name, width)
    if turn.size > width and (
        shapes.of(linear.x) is None or any(operator == "Reshape" for operator, _ in linear.weight.steps)
    ):
        return Refused(name, f"{width} channels have no good rotation, and cannot be filled up here")
    return Place(
        name=name,
        done="input of a product rotated by an operator",
        put=lambda folding: folding.rotate_input(linear, turn, len(shapes.of(linear.x) or ())),
        before=(linear,),
        behind=(),
        online=True,
    )


def _odd(name: str, width: int) -> Refused:
    return Refused(name, f"{width} channels: only even numbers have a rotation")


def roundings(model: Model, context: Context) -> Roundings:
    """How the recipe rounds around each linear; a simple way to round stands for the one that it asks for."""
    plan, weights = context.plan(model)
    specs = {weight.name: each.spec for weight, each in zip(weights, plan, strict=True)}
    sites = plan_activations(model.ir, context.recipe, context.target, context.selection).sites
    activations = {node: site.spec for site in sites for node, _ in site.uses}

    def rounding(linear: Linear) -> tuple[Rounding, Rounding] | None:
        weight = linear.weight
        spec, activation = specs[weight.name], activations.get(linear.node)
        if spec is None and activation is None:
            return None
        return (
            _unchanged if activation is None else partial(_round_rows, activation),
            _unchanged if spec is None else partial(_round_weight, weight, spec),
        )

    return rounding


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _round_rows(spec: ActivationSpec, rows: np.ndarray) -> np.ndarray:
    if spec.group_size is not None:
        token = spec.model_copy(update={"granularity": "token", "group_size": None})
        return _round_rows(token, rows.reshape(-1, spec.group_size)).reshape(rows.shape)
    kind, axis = get_format(spec.format), {"token": 1, "channel": 0, "tensor": None}[spec.granularity]
    low, high = (bound(rows, axis=axis, keepdims=True).astype(np.float64) for bound in (np.min, np.max))
    scale, zero_point = scale_of(low, high, kind, symmetric=spec.symmetric)
    return round_to(rows.astype(np.float64), scale * spec.clip_ratio, zero_point, kind).astype(np.float32)


def _round_weight(weight: Weight, spec: QuantSpec, array: np.ndarray) -> np.ndarray:
    grid = grid_spec(weight, spec)
    if spec.granularity == "channel":
        # Filled up, a column is longer than that of the weight.
        grid = replace(grid, block=len(array))
    decoded: np.ndarray = rtn.solve(array[None], grid).decode()[0]
    return decoded
