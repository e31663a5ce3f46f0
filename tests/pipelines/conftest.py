"""A tiny run of either kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import CDRLPipeline
from tests.helpers import save_tiny_run


@pytest.fixture(scope="module", params=["pixel", "latent"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_run(folder, latent=request.param == "latent")
    return folder


@pytest.fixture
def pipeline(run: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(run)
