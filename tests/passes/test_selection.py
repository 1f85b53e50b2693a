"""Patterns that match nothing are said, with the name that was most likely meant."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from onnxq.passes.plan import make_plan
from onnxq.passes.selection import Selection
from onnxq.recipes import parse_recipe

TEXT = (
    '<ir_version: 7, opset_import: ["": 21]> g (float[3,64] x) => (float[3,64] y) '
    "{ [decoder_0] h = MatMul(x, v) [lm_head] y = MatMul(h, w) }"
)


def sentences(rules: str, selection: Selection | None = None) -> tuple[str, ...]:
    proto = parser.parse_model(TEXT)
    for name in ("v", "w", "h.0.q_proj"):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), name))
    recipe = parse_recipe(f"name: mine\nrules: {rules}", "mine.yaml")
    return make_plan(ir.from_proto(proto), recipe, "ort", selection or Selection())[0].warnings


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ("{name: '*lm_haed*'}", ("rule 2 of 'mine' matches no weight: '*lm_haed*'; the nearest name is 'lm_head'",)),
        (
            "{name: [a.7.x, b.7.x, c.7.x, d.7.x, lm_heads]}",
            ("rule 2 of 'mine' matches no weight: 'a.7.x', 'b.7.x', 'c.7.x' and 2 more",),
        ),
        ("{regex: '.*_(q|k)'}", ("rule 2 of 'mine' matches no weight: '.*_(q|k)'",)),
        ("{name: ['*embed_out*', '*lm_head*']}", ()),
        ("{name: '*q_prj*'}", ("rule 2 of 'mine' matches no weight: '*q_prj*'; the nearest name is 'h.0.q_proj'",)),
        ("{name: v}", ()),
        ("{regex: 'decoder_[0-9]+'}", ()),
        # Other conditions are not patterns: recipes hold them for models of all kinds.
        ("{op: Conv}", ()),
        ("{name: lm_head, op: Conv, min_size: 100000}", ()),
    ],
)
def test_a_rule_whose_patterns_match_no_name(match: str, said: tuple[str, ...]) -> None:
    assert sentences(f"[{{weight: {{format: int8}}}}, {{match: {match}, skip: mine}}]") == said


def test_each_glob_of_the_caller() -> None:
    picked = Selection(include=("decoder_*", "encoder*"), exclude=("nothing",))
    assert sentences("[{weight: {format: int8}}]", picked) == (
        "include matches no weight: 'encoder*'; the nearest name is 'decoder_0'",
        "exclude matches no weight: 'nothing'",
    )
