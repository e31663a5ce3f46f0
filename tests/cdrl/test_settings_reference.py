"""The reference of settings: complete, and the same in docs as in the code."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cdrl import ConfigError
from cdrl.config import Config
from cdrl.config_files import dump_config, load_config
from cdrl.settings_reference import settings_in_markdown, settings_in_text, settings_sections
from tests.helpers import ROOT


def keys_of(values: object, before: str = "") -> set[str]:
    """Names of all leaves of nested settings."""
    if not isinstance(values, dict):
        return {before}
    return set().union(*(keys_of(value, f"{before}.{key}" if before else key) for key, value in values.items()))


def test_every_setting_that_a_configuration_holds_is_told_with_its_meaning() -> None:
    told = {setting.key: setting for section in settings_sections() for setting in section.settings}
    whole = yaml.safe_load(dump_config(load_config("fashion_mnist_latent", ["evaluation.every=5"])))
    assert keys_of(whole) == set(told)
    assert all(setting.meaning and setting.kind and setting.default for setting in told.values())
    assert len({setting.key for setting in told.values()}) == len(told)


def test_defaults_are_those_of_the_configuration() -> None:
    told = {setting.key: setting.default for section in settings_sections() for setting in section.settings}
    needed: dict[str, Any] = {"space": "pixel", "data": {"name": "digits"}, "evaluation": {"every": 5}}
    needed["autoencoder"] = {"training": {"num_steps": 5}}
    config = Config.model_validate(needed).model_dump(mode="json")
    for key, default in told.items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if default == "required":
            assert key in ("space", "data.name", "evaluation.every", "autoencoder.training.num_steps")
        elif key == "data.background":
            assert (value, default) == ("#ffffff", "white")
        else:
            assert yaml.safe_load(default) == value, key


def test_the_page_in_docs_is_the_one_that_the_code_makes() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_in_markdown(), (
        "make it anew: cdrl settings --markdown > docs/settings.md"
    )


def test_one_section_comes_with_those_inside_it_and_a_misspelt_one_is_named() -> None:
    assert [section.name for section in settings_sections("autoencoder")] == [
        "autoencoder",
        "autoencoder.architecture",
        "autoencoder.objective",
        "autoencoder.training",
    ]
    assert "schedule.num_levels  [whole number ≥ 2 ≤ 10000; default: 6]" in settings_in_text("schedule")
    assert "data.name" not in settings_in_text("schedule")
    with pytest.raises(ConfigError, match=r"trainin: no section of a configuration; did you mean 'training'\?"):
        settings_in_text("trainin")
