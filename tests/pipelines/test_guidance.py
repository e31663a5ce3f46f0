"""Guidance: what is taken for a weight or a guidance, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.guidance import ClassifierFree, parse_guidance, weight_or_guidance


def test_a_weight_is_a_float_and_a_guidance_itself() -> None:
    for weight in (1, 1.0, np.float32(1.0), np.int64(1)):
        assert type(weight_or_guidance(weight)) is float
    guidance = ClassifierFree(0.5)
    assert weight_or_guidance(guidance) is guidance


@pytest.mark.parametrize("value", ["0.5", None, True, [0.5], ClassifierFree, lambda model: model])
def test_what_is_neither_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^guidance: expected a weight of 0 or more, or a Guidance, found "):
        weight_or_guidance(value)


@pytest.mark.parametrize(
    ("value", "fault"),
    [("1", TypeError), (True, TypeError), (None, TypeError), (-1, ValueError), (float("nan"), ValueError)],
)
def test_a_weight_that_cannot_be_is_refused(value: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault, match=r"^guidance: expected a weight of 0 or more, found "):
        ClassifierFree(value)


def test_a_guidance_is_read_from_text() -> None:
    number: Any = 0.5
    with pytest.raises(TypeError, match=r"^guidance: expected a text, such as '0.7' or .*, found 0.5"):
        parse_guidance(number)
