import threading
from collections.abc import Callable
from functools import partial

import pytest

from onnxq.passes.solving import in_order


def _calls(number: int) -> tuple[list[int], list[Callable[[], str]]]:
    """Calls, and a list in which each notes that it was begun."""
    begun: list[int] = []

    def call(at: int) -> str:
        begun.append(at)
        return str(at)

    return begun, [partial(call, at) for at in range(number)]


def test_results_come_in_the_order_of_the_calls():
    first = threading.Event()

    def waits() -> str:
        assert first.wait(60)
        return "first"

    def goes() -> str:
        first.set()
        return "second"

    with in_order([waits, goes], 2) as results:
        assert list(results) == ["first", "second"]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_so_many_results_are_made_ahead(threads):
    begun, calls = _calls(20)
    with in_order(calls, threads) as results:
        for taken, result in enumerate(results, 1):
            assert result == str(taken - 1)
            assert len(begun) <= taken + threads
    assert len(begun) == 20


def test_what_was_not_begun_is_left_when_the_taker_fails():
    begun, calls = _calls(20)

    def take_one() -> None:
        with in_order(calls, 2) as results:
            raise ValueError(next(results))

    with pytest.raises(ValueError, match="0"):
        take_one()
    assert len(begun) <= 3
