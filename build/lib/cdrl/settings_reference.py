"""All settings of a configuration, read off its types: names, what they may be, their defaults, what they mean."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cdrl.config import Config, ConfigError
from cdrl.names import suggestion

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    Attributes:
        key: with its sections, as an override on the command line names it.
        kind: what it may be, in words.
        default: in YAML; ``required`` where there is none.
        meaning: in one sentence, with its place in the paper.
    """

    key: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class SettingsSection:
    """A section of a configuration: its name, ``""`` for the top, its meaning, and its settings."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def settings_sections(within: str = "") -> list[SettingsSection]:
    """The sections of a configuration, or one of them with those inside it.

    Raises:
        ConfigError: there is no such section; the message has the nearest one.
    """
    sections = list(_sections("", Config, "what a run is"))
    if not within:
        return sections
    found = [section for section in sections if f"{section.name}.".startswith(f"{within}.")]
    if not found:
        names = [section.name for section in sections if section.name]
        raise ConfigError(f"{within}: no section of a configuration; {suggestion(within, names)}")
    return found


def settings_in_markdown() -> str:
    """The reference as a page of the documentation."""
    lines = [
        "# Settings",
        "",
        "A run is one YAML file. It may name another as its `base:`, whose values it takes over and changes, section",
        "by section. `space:` alone says what the energies model: `pixel`, `latent` or `point`. On the command line",
        "every setting is changed by its name, `training.batch_size=64`.",
        "",
        "`cdrl settings` tells the same, section by section; `cdrl settings --markdown` prints this page.",
    ]
    for section in settings_sections():
        lines += ["", f"## {section.name or 'at the top'}: {section.meaning}", ""]
        lines += ["| setting | may be | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{setting.key}` | {setting.kind} | `{setting.default}` | {setting.meaning} |"
            for setting in section.settings
        ]
    return "\n".join(lines) + "\n"


def settings_in_text(within: str = "") -> str:
    """The reference, or a section of it, for a terminal.

    Raises:
        ConfigError: there is no such section.
    """
    parts = []
    for section in settings_sections(within):
        parts.append(f"{section.name or 'at the top'}: {section.meaning}")
        for setting in section.settings:
            parts.append(f"  {setting.key}  [{setting.kind}; default: {setting.default}]")
            parts.append(textwrap.fill(setting.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
        parts.append("")
    return "\n".join(parts[:-1])


def _sections(name: str, model: type[BaseModel], meaning: str) -> Iterator[SettingsSection]:
    fields = {key: (field, _section_of(field)) for key, field in model.model_fields.items()}
    settings = tuple(_setting(name, key, field) for key, (field, inner) in fields.items() if inner is None)
    yield SettingsSection(name, meaning, settings)
    for key, (field, inner) in fields.items():
        if inner is not None:
            yield from _sections(f"{name}.{key}" if name else key, inner, field.description or "")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _setting(section: str, key: str, field: FieldInfo) -> Setting:
    if field.default is PydanticUndefined:
        default = "required"
    else:
        plain = field.default
        plain = list(plain) if isinstance(plain, tuple) else str(plain) if isinstance(plain, Path) else plain
        default = yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    kind = _kind(field.annotation, field.metadata)
    return Setting(f"{section}.{key}" if section else key, kind, default, field.description or "")


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """What a value may be, in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0], [*inside[1:], *metadata])
    if origin is Literal:
        return ", ".join(str(value) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _kind(kind, metadata) for kind in inside)
    if origin is tuple:
        return f"list, each {_kind(inside[0], [])}"
    return " ".join([_WORDS[annotation], *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for constraint in metadata:
        for part in constraint if isinstance(constraint, annotated_types.GroupedMetadata) else (constraint,):
            match part:
                case FieldInfo():
                    yield from _bounds(part.metadata)
                case annotated_types.Ge(ge=limit):
                    yield f"≥ {limit}"
                case annotated_types.Gt(gt=limit):
                    yield f"> {limit}"
                case annotated_types.Le(le=limit):
                    yield f"≤ {limit}"
                case annotated_types.Lt(lt=limit):
                    yield f"< {limit}"
                case annotated_types.MultipleOf(multiple_of=factor):
                    yield f"divisible by {factor}"
