"""YAML and JSON of plain values."""

from __future__ import annotations

import pytest

from cdrl.foreign.values import load_json, load_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def test_plain_values_and_repeated_ones() -> None:
    text = "base: &b {a: 1, c: [x, 0.5, true, null, ~]}\nother: {<<: *b, a: 2}\nday: 2020-01-01\nname: !!str 5\n"
    base = {"a": 1, "c": ["x", 0.5, True, None, None]}
    assert load_yaml(text) == {"base": base, "other": {**base, "a": 2}, "day": "2020-01-01", "name": "5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int ''", "line 1: no int"),
        ("a: !!float x", "line 1: no float"),
        ("a: !!bool x", "line 1: no bool"),
        ("a: !!timestamp x", "a value of the kind tag:yaml.org,2002:timestamp"),
        ("a: !!binary x", "a value of the kind"),
        ("a: !!python/object/apply:os.mkdir [harm]", "a value of the kind"),
        ("a: &a [*a]", "a value that holds itself"),
        ("a: 0x_", "invalid literal"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("[" * 5000, "without end"),
        ("a: [1, {", "expected"),
        ("? [a, b]\n: 1", "unhashable|hashable"),
        (LAUGHS, "more than 20,000 values"),
        ("\x00", "special characters"),
    ],
)
def test_what_is_not_plain_is_refused_in_one_short_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(text)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_json_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="without end"):
        load_json("[" * 100_000)
