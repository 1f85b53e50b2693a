import pytest

from onnxq.errors import UsageError
from onnxq.formats import NAMED_FORMATS, Minifloat, get_format


@pytest.mark.parametrize("name", NAMED_FORMATS)
def test_a_named_format_is_found_by_its_name(name):
    assert get_format(name) is NAMED_FORMATS[name]
    assert get_format(name).name == name


def test_the_formats_that_recipes_may_count_on():
    assert set(NAMED_FORMATS) >= {
        *("fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp5_e2m2", "fp4_e2m1", "fp4_e3m0", "fp4_e1m2"),
        *("int2", "int3", "int4", "int5", "int6", "int8", "uint2", "uint4", "uint8", "nf4"),
    }


@pytest.mark.parametrize(("e", "m"), [(e, m) for e in range(1, 8) for m in range(8 - e)])
def test_every_minifloat_of_at_most_a_byte_has_a_name(e, m):
    assert get_format(f"fp{1 + e + m}_e{e}m{m}") == Minifloat(e, m)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("fp6_e2m4", "fp6_e2m3"), ("FP6_E3M2", None), ("fp4e2m1", "fp4_e2m1"), ("in4", "int4"), ("nf3", "nf4")],
)
def test_a_misspelt_format_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UsageError) as error:
        get_format(name)
    assert f"no format '{name}'" in str(error.value)
    if nearest:
        assert f"did you mean '{nearest}'" in str(error.value)
    assert all(valid in str(error.value) for valid in NAMED_FORMATS)


@pytest.mark.parametrize("name", ["", "fp6", "fp7_e3m2", "fp6_e3m2 ", "fp16_e5m10", "fp9_e4m4", "fp4_e0m3"])
def test_what_is_no_format_is_refused(name):
    with pytest.raises(UsageError):
        get_format(name)
