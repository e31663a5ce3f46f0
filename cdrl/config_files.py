"""Configurations in files: read from YAML, merged, overridden, and told what is wrong with them.

A config file may name a ``base`` file, whose values it overrides section by section. Overrides from the
command line are ``section.key=value`` with the value in YAML. Every mistake is reported in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cdrl.config import Config, ConfigError, Section, expanded_path
from cdrl.foreign.files import read_file
from cdrl.foreign.places import without_secrets
from cdrl.foreign.values import load_yaml
from cdrl.installation import config_file, config_names
from cdrl.names import counted, suggestion

_LONGEST_CONFIG = 2**20
"""Bytes of a file of settings."""
_MOST_MISTAKES = 4
"""Mistakes of a configuration that are told at once."""


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read a configuration and its bases, apply ``section.key=value`` overrides, and check the result.

    Args:
        path: of a YAML file; or the name of a configuration that ships, such as ``digits``.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value has the wrong type or cannot be combined
            with another; one line a mistake, which names the file or the override that it is in.
    """
    values = _read_merged(config_file(Path(path)), seen=())
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, source=str(path), overrides=overrides)


def parse_config(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Check plain values (as YAML gives them) and return the typed configuration.

    Args:
        source: where the values come from.
        overrides: those that are in the values already, as they were typed.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_mistakes(source, overrides, error))) from None


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def without_absolute_paths(value: Any) -> Any:
    """Nested settings; of absolute paths, which tell of a machine, the last part alone."""
    if isinstance(value, dict):
        return {key: without_absolute_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _read_merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its chain of 'base' files comes back to itself")
    try:
        values = load_yaml(read_file(path, _LONGEST_CONFIG).decode("utf-8"))
    except FileNotFoundError:
        shipped = "" if path.is_absolute() else f"; {suggestion(path.stem, config_names())}"
        raise ConfigError(f"{path}: no such config file{shipped}") from None
    except OSError as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected sections ('data:', 'training:', …) at the top, found {type(values).__name__}"
        )
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read_merged(path.parent / _base_path(base, path), (*seen, path.resolve())), values)


def _base_path(value: Any, path: Path) -> Path:
    try:
        return Path(expanded_path(str(value)))
    except ValueError as error:
        raise ConfigError(f"{path}: base: {error}") from None


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_sections else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{_quoted(override)}: expected section.key=value")
    try:
        value = load_yaml(text)
    except ValueError:
        raise ConfigError(f"{_quoted(override)}: '{text[:80]}' is not a YAML value") from None
    *sections, key = name.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{_quoted(override)}: '{section}' is a value, not a section")
    values[key] = value


def _quoted(override: str) -> str:
    override = without_secrets(override)
    return f"override '{override if len(override) <= 120 else override[:116] + ' …'}'"


def _mistakes(source: str, overrides: Sequence[str], error: ValidationError) -> Iterator[str]:
    """A line for each key that is wrong, and for each two that contradict each other."""
    told: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        key = _key(item["loc"])
        told.setdefault((_place(source, overrides, key, item), key), []).append(_explain(key, item))
    # Of a key that takes values of several types each type has its own complaint.
    lines = [f"{place}: {'; or '.join(dict.fromkeys(wrong))}" for (place, _), wrong in told.items()]
    yield from lines[:_MOST_MISTAKES]
    if len(lines) > _MOST_MISTAKES:
        yield f"{source}: and {counted(len(lines) - _MOST_MISTAKES, 'mistake')} more"


def _key(loc: tuple[int | str, ...]) -> str:
    """A place as users write it: without the names that pydantic gives to the types that a value may have."""
    section, known = _fields(()), list[str]()
    for part in loc:
        if section and isinstance(part, str) and part not in section:
            return ".".join([*known, part])
        if section or isinstance(part, int):
            known.append(str(part))
            section = _fields(tuple(known))
    return ".".join(known)


def _fields(sections: Sequence[str]) -> list[str]:
    """The keys of a section of the configuration; none where there is no section of this name."""
    model: type[BaseModel] = Config
    for name in sections:
        field = model.model_fields.get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _place(source: str, overrides: Sequence[str], key: str, item: Any) -> str:
    """What a mistake is to be looked for in: an override as it was typed, the file, or the file with overrides."""
    typed = {override.partition("=")[0]: override for override in overrides}  # of several for one key the last counts
    own = [name for name in typed if key and _within(key, name)]
    if item["type"] == "extra_forbidden":
        own += [name for name in typed if _within(name, key)]
    mentioned = [name for name in typed if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", item["msg"])]
    if own or mentioned:
        return _quoted(typed[(own or mentioned)[-1]])
    # A section without a key, or values that contradict each other: overrides in it may be what is wrong.
    missing = item["type"] == "missing"
    section = key.rpartition(".")[0] if missing else key
    near = [_quoted(typed[name]) for name in typed if (_within(name, section) if section else not missing)]
    return f"{source} with {', '.join(near[:3])}{', …' if near[3:] else ''}" if near else source


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _explain(key: str, item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {_nearest(key)}"
    if item["type"] == "missing":
        return f"missing key '{key}'"
    message = item["msg"].removeprefix("Value error, ")
    given = f" (given: {_shortened(item['input'])})" if key and not isinstance(item["input"], dict) else ""
    return f"{key + ': ' if key else ''}{message}{given}"


def _nearest(key: str) -> str:
    """What an unknown key may have meant: one like it in its section, or one of its name in another."""
    *sections, name = key.split(".")
    near = suggestion(name, _fields(sections), "".join(f"{section}." for section in sections))
    elsewhere = [place for place in _all_keys() if place.rpartition(".")[2] == name]
    return f"did you mean '{min(elsewhere, key=len)}'?" if elsewhere else near


def _all_keys(sections: tuple[str, ...] = ()) -> Iterator[str]:
    for field in _fields(sections):
        yield ".".join([*sections, field])
        yield from _all_keys((*sections, field))


def _shortened(value: Any) -> str:
    """A value in at most some 80 characters: a file may hold megabytes where a number is expected."""
    if isinstance(value, str | int | float | bool | None):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**80 else "a number of many digits"
        text = without_secrets(text)
        return text if len(text) <= 80 else f"{text[:76]} …"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple | set) else type(value).__name__
