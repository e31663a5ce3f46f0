"""Checks of the arguments of public functions: one line names the argument, what is expected and what came.

A value of a wrong kind is a TypeError; one of the right kind that cannot be is a ValueError. True and False are no
numbers; those of NumPy, and tensors of one number without dimensions, are.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl.config import expanded_path


def shown(value: object) -> str:
    """A value as an error shows it, on one short line: tensors and arrays by their type and shape."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')}, {list(value.shape)}"
    return " ".join(reprlib.repr(plain(value)).split())


def plain(value: Any) -> Any:
    """A number of NumPy, or of a tensor without dimensions, as Python's; any other value as it is."""
    single = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if single else value


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number as an int.

    Raises:
        TypeError: it is no number.
        ValueError: it is not whole, or less than ``least``, or more than ``most``.
    """
    number = plain(value)
    bounds = "" if least is None else f" of at least {least}"
    message = f"{name}: expected a whole number{bounds if most is None else f'{bounds} and at most {most}'}"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{message}, found {shown(value)}")
    too_small, too_large = least is not None and number < least, most is not None and number > most
    if not isinstance(number, int) or too_small or too_large:
        raise ValueError(f"{message}, found {shown(value)}")
    return number


def whole_numbers(name: str, value: Any, example: str) -> list[int]:
    """Several whole numbers in an order; ``example`` shows some.

    Raises:
        TypeError: they have no order, or one is no number.
        ValueError: one is not whole.
    """
    numbers = [plain(each) for each in in_order(name, value, f"a list, such as {example}")]
    wrong = [each for each in numbers if isinstance(each, bool) or not isinstance(each, int)]
    if wrong:
        fault = ValueError if all(isinstance(each, float) for each in wrong) else TypeError
        raise fault(f"{name}: expected whole numbers, found {shown(value)}")
    return numbers


def finite_number(name: str, value: Any, least: float | None = None, expected: str = "a finite number") -> float:
    """A number as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN, infinite or less than ``least``.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name}: expected {expected}, found {shown(value)}")
    try:
        result = float(number)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result) or (least is not None and result < least):
        raise ValueError(f"{name}: expected {expected}, found {shown(value)}")
    return result


def in_order(name: str, value: Any, expected: str) -> list[Any]:
    """Several values as a list. Raises TypeError for a single one, a text, a set or a mapping."""
    single = isinstance(value, Tensor | np.ndarray) and value.ndim == 0
    if single or isinstance(value, str | bytes | Set | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected {expected}, found {shown(value)}")
    return list(value)


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless a value is of one of some types; ``expected`` says which in words."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: expected {expected}, found {shown(value)}")


def check_function(name: str, function: Any, expected: str, *values: Any, **named: Any) -> None:
    """Raise TypeError for what cannot be called with as many values, and with those names; it is not called here."""
    try:
        inspect.signature(function).bind(*values, **named)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, found {shown(function)}") from None
    except ValueError:
        return  # some functions that are written in C do not tell what they take


def check_grids(name: str, value: Any, shape: Sequence[int | str]) -> None:
    """Check that a value is a tensor of at least one grid, float [N, *shape].

    Args:
        shape: sizes, or a name for one that may be any: (3, "H", "W").

    Raises:
        TypeError: it is no tensor of floats.
        ValueError: it has another shape, or no grid is there.
    """
    expected = f"[N, {', '.join(map(str, shape))}]"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}: expected a tensor of floats, {expected}, found {shown(value)}")
    sides = tuple(value.shape[1:])
    if len(sides) != len(shape) or any(isinstance(side, int) and side != found for side, found in zip(shape, sides)):
        raise ValueError(f"{name}: expected {expected}, found {list(value.shape)}")
    if not value.numel():
        raise ValueError(f"{name}: expected {expected} with nothing of size 0, found {list(value.shape)}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError for values among which there is NaN or infinity."""
    if not torch.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")


def check_image_range(values: Tensor, rounding: float = 0.0, also: str = "") -> None:
    """Raise ValueError for images that leave [-1, 1] by more than ``rounding``, or hold NaN.

    Args:
        also: what else may be given, in words.
    """
    check_finite("images", values)
    low, high = float(values.min()), float(values.max())
    if low < -1 - rounding or high > 1 + rounding:
        raise ValueError(f"images: expected values in [-1, 1]{also}, found {low:.3g} … {high:.3g}")


def device_of(device: Any) -> torch.device:
    """A device of this machine.

    Raises:
        TypeError: it is neither a `torch.device` nor the name of one.
        ValueError: there is no such device on this machine.
    """
    check_kind("device", device, (str, torch.device), "cpu, cuda or cuda:N")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device: expected cpu, or a device of this machine, found '{device}'") from None
    return found


def folder_of(name: str, folder: Any) -> Path:
    """A folder as a path, ~ expanded.

    Raises:
        TypeError: it is neither text nor a path.
        ValueError: it is no path of this machine.
    """
    check_kind(name, folder, (str, Path), "a folder")
    try:
        return Path(expanded_path(folder))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
