"""Models to a hub and back: the same images, no path of this machine, and words where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from cdrl import RunError
from pipelines import CDRLPipeline
from pipelines.hub import is_hub_name
from run import app
from tests.helpers import save_tiny_run, tiny_config
from tests.hub_server import Hub, running_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub in place of the real one, with a token for it; nothing is fetched into the user's own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache-of-the-hub"))
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def cdrl(command: str) -> Result:
    return CliRunner().invoke(app, command.split())


@pytest.mark.parametrize("latent", [False, True])
def test_a_run_goes_to_the_hub_and_comes_back_with_its_card(hub: Hub, tmp_path: Path, latent: bool) -> None:
    data = {"cache": str(tmp_path / "cache")}
    save_tiny_run(
        tmp_path / "run",
        latent=latent,
        config=tiny_config(**({"space": "latent", "autoencoder": {}} if latent else {}), data=data),
    )
    pushed = cdrl("push run someone/tiny --half")
    assert pushed.exit_code == 0, pushed.output
    files = hub.repositories["someone/tiny"]
    assert {"README.md", "config.json", "checksums.json", "energy.safetensors"} <= files.keys()
    assert all(str(tmp_path).encode() not in content for content in files.values())
    fetched = cdrl("pull someone/tiny")
    assert fetched.exit_code == 0, fetched.output
    first, second = (CDRLPipeline.from_pretrained(tmp_path / name)(3, seed=1).tensors for name in ("run", "runs/tiny"))
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)
    again = cdrl("pull someone/tiny")
    assert again.exit_code == 2
    assert "runs/tiny: exists already" in again.stderr


def test_a_pipeline_goes_to_the_hub_and_is_opened_by_its_name(hub: Hub, tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run")
    pipe = CDRLPipeline.from_pretrained("run")
    assert pipe.push_to_hub("someone/tiny") == f"{hub.address}/someone/tiny"
    assert torch.equal(pipe(2).tensors, CDRLPipeline.from_pretrained("someone/tiny")(2).tensors)
    assert "Bearer secret" in hub.tokens


def test_nothing_but_weights_and_texts_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/evil"] = {"config.json": b"{}", "energy.pt": b"\x80\x04.", "run.py": b"print(1)"}
    refused = cdrl("pull someone/evil")
    assert refused.exit_code == 2
    assert "Traceback" not in refused.stderr
    assert not any("energy.pt" in line or "run.py" in line for line in hub.asked if "resolve" in line)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("pull someone/nothing", "someone/nothing: no folder here, and the Hub does not give it out"),
        ("push run nameless", "name: expected OWNER/NAME, found 'nameless'"),
    ],
)
def test_failures_are_one_line(hub: Hub, tmp_path: Path, command: str, expected: str) -> None:
    save_tiny_run(tmp_path / "run")
    refused = cdrl(command)
    assert refused.exit_code == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith(f"error: {expected}")


def test_without_a_token_nothing_is_taken(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    save_tiny_run(tmp_path / "run")
    refused = cdrl("push run someone/tiny")
    assert refused.exit_code == 2
    assert "someone/tiny: the Hub does not take it" in refused.stderr


def test_folders_come_before_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("someone/digits")
    for text in ("digits", "runs/digits", "a/b/c", "/someone/digits", "./digits", "some one/digits", "~/digits"):
        assert not is_hub_name(text)
    assert not is_hub_name(Path("someone/digits"))
    Path("someone").mkdir()
    assert not is_hub_name("someone/digits")  # a folder of one's own, in which nothing lies yet
    with pytest.raises(RunError, match="someone/digits: no trained model there"):
        CDRLPipeline.from_pretrained("someone/digits")
