"""Checks of arguments: what is taken, and what is refused in one line."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdrl.arguments import (
    check_finite,
    check_function,
    check_grids,
    check_image_range,
    device_of,
    finite_number,
    folder_of,
    in_order,
    plain,
    shown,
    whole_number,
    whole_numbers,
)

NAN = float("nan")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_every_kind_are_the_same(value: Any) -> None:
    assert type(whole_number("n", value)) is int
    assert whole_number("n", value, least=3, most=3) == 3
    assert whole_numbers("n", [value, 4], "[1, 2]") == [3, 4]


@pytest.mark.parametrize("values", [(1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), iter([1, 2])])
def test_whole_numbers_come_in_any_form_with_an_order(values: Any) -> None:
    assert whole_numbers("n", values, "[1, 2]") == [1, 2]


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_every_kind_are_floats(value: Any) -> None:
    assert type(finite_number("n", value)) is float
    assert finite_number("n", value) == float(value)


WHOLE: list[tuple[Any, type[Exception]]] = [
    (True, TypeError),
    (np.True_, TypeError),
    (torch.tensor(True), TypeError),
    ("3", TypeError),
    (None, TypeError),
    ([3], TypeError),
    (torch.tensor([3]), TypeError),
    (3.0, ValueError),
    (NAN, ValueError),
    (0, ValueError),
    (11, ValueError),
]


@pytest.mark.parametrize(("value", "fault"), WHOLE)
def test_what_is_no_whole_number_in_the_bounds_is_refused(value: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault, match=r"^n: expected a whole number of at least 1 and at most 10, found [^\n]+$"):
        whole_number("n", value, least=1, most=10)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        *((each, TypeError) for each in (True, "0.5", None, 1j)),
        *((each, ValueError) for each in (NAN, float("inf"), 10**400, -1)),
    ],
)
def test_what_is_no_finite_number_is_refused(value: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault, match=r"^w: expected a weight, found "):
        finite_number("w", value, least=0, expected="a weight")


@pytest.mark.parametrize("value", ["noise", b"noise", {1, 2}, frozenset(), {"a": 1}, 3, None, torch.tensor(3)])
def test_what_has_no_order_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^out: expected a list of sets, found "):
        in_order("out", value, "a list of sets")


@pytest.mark.parametrize(
    ("values", "fault"), [([1.5], ValueError), ([True], TypeError), ([1, "2"], TypeError), ([None], TypeError)]
)
def test_several_that_are_not_all_whole_are_refused(values: Any, fault: type[Exception]) -> None:
    with pytest.raises(fault, match=r"^seeds: expected whole numbers, found "):
        whole_numbers("seeds", values, "[1, 2]")


def test_a_function_takes_what_it_will_be_given() -> None:
    def whole(*, level: int, step: int) -> None: ...

    for taken in (whole, lambda **facts: None, functools.partial(whole, level=1)):
        check_function("callback", taken, "a function", level=0, step=0)
    refused: list[Any] = [None, 3, "print", lambda: None, lambda level: None, lambda *values: None]
    for each in refused:
        with pytest.raises(TypeError, match=r"^callback: expected a function, found "):
            check_function("callback", each, "a function", level=0, step=0)
    check_function("guidance", max, "a function", 1, 2)


@pytest.mark.parametrize(
    ("value", "fault", "found"),
    [
        (np.zeros((2, 1, 8, 8)), TypeError, r"an array of float64, \[2, 1, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, r"a tensor of uint8, \[2, 1, 8, 8\]"),
        ([1], TypeError, r"\[1\]"),
        (torch.zeros(1, 8, 8), ValueError, r"\[1, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8), ValueError, r"\[2, 3, 8, 8\]"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"\[0, 1, 8, 8\]"),
    ],
)
def test_grids_of_another_form_are_refused(value: Any, fault: type[Exception], found: str) -> None:
    check_grids("y", torch.zeros(2, 1, 8, 8, dtype=torch.float64), (1, 8, 8))
    check_grids("y", torch.zeros(2, 1, 8, 4), (1, "H", "W"))
    with pytest.raises(fault, match=rf"^y: expected .*\[N, 1, 8, 8\].*, found {found}$"):
        check_grids("y", value, (1, 8, 8))


def test_values_that_are_not_finite_or_leave_the_range_are_refused() -> None:
    check_image_range(torch.tensor([-1.0, 1.0005]), rounding=1e-3)
    with pytest.raises(ValueError, match=r"^images: expected values in \[-1, 1\], found -1 … 1.5$"):
        check_image_range(torch.tensor([-1.0, 1.5]), rounding=1e-3)
    for value in (NAN, float("inf")):
        with pytest.raises(ValueError, match=r"^grids: expected finite numbers, found NaN or infinity$"):
            check_finite("grids", torch.tensor([0.0, value]))


def test_devices_are_those_of_this_machine() -> None:
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    for name in ("gpu", "", "cuda:99"):
        with pytest.raises(ValueError, match=f"^device: expected cpu, or a device of this machine, found '{name}'$"):
            device_of(name)
    for value in (None, 0, True, torch.zeros(1), np.zeros(2), torch.float16):
        with pytest.raises(TypeError, match=r"^device: expected cpu, cuda or cuda:N, found "):
            device_of(value)


def test_folders_are_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert folder_of("run", "~/runs") == folder_of("run", Path("~/runs")) == Path("/home/me/runs")
    for value in (None, 3, b"runs", ["runs"]):
        with pytest.raises(TypeError, match=r"^run: expected a folder, found "):
            folder_of("run", value)
    for text, message in (("", "found nothing"), ("https://a.b/c", "found a URL"), ("~nobody-of-that-name/a", "home")):
        with pytest.raises(ValueError, match=f"^run: expected .*{message}"):
            folder_of("run", text)


def test_what_came_is_shown_on_one_short_line() -> None:
    assert shown(torch.zeros(1000, 3)) == "a tensor of float32, [1000, 3]"
    assert shown(np.zeros((4, 0), np.uint8)) == "an array of uint8, [4, 0]"
    assert shown(np.float64(1.5)) == shown(torch.tensor(1.5)) == "1.5"
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 10_000)) < 50
    assert len(shown(list(range(10_000)))) < 50
    assert "\n" not in shown([torch.zeros(20, 20)])
    assert plain(np.array([1])).shape == (1,)
