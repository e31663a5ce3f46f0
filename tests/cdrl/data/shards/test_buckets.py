"""Shards in a bucket and on a hub, each played by a server on this machine; and that no secret is kept with a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from cdrl.config import DataConfig
from cdrl.data import DataError, open_source, training_images, write_prepared
from cdrl.data.shards import fetching
from cdrl.runs.run import read_json
from pipelines.jobs.training import run_stage_two
from tests.helpers import tiny_config
from tests.hub_server import running_hub

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

SECRET = "a-secret-of-buckets"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fetching, "_LONGEST_PAUSE", 0.01)


@pytest.fixture
def digits(tmp_path: Path) -> DataConfig:
    """Digits, prepared on this machine."""
    data = DataConfig(name="digits", image_size=8, channels=1, labels="class", prepared=tmp_path / "digits")
    for split in ("train", "test"):
        write_prepared(data, split, open_source(data, split))
    return data


@pytest.fixture
def bucket(digits: DataConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of storage whose bucket holds the prepared digits; the environment says where it is, and the key."""
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sets")
    for path in Path(str(digits.prepared)).rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "sets", f"digits/{path.relative_to(str(digits.prepared))}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def moved(data: DataConfig, place: str, tmp_path: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({**data.model_dump(), "prepared": place, "cache": tmp_path / "cache", **fields})


@pytest.mark.parametrize("room", [64.0, 2.2e-3])
def test_a_set_in_a_bucket_is_the_set_here(digits: DataConfig, bucket: Any, tmp_path: Path, room: float) -> None:
    there = moved(digits, "s3://sets/digits", tmp_path, stream=True, cache_gib=room)
    for split in ("train", "test"):
        one, other = training_images(digits, split), training_images(there, split)
        assert torch.equal(one.grids[:], other.grids[:])
        rows = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:100]
        assert torch.equal(one.grids[rows], other.grids[rows])
    sizes = [path.stat().st_size for path in (tmp_path / "cache" / "elsewhere").iterdir() if path.is_file()]
    assert sum(sizes) <= room * 2**30


def test_no_secret_is_kept_with_a_run(digits: DataConfig, bucket: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = {"prepared": "s3://sets/digits", "stream": True, "cache": str(tmp_path / "cache")}
    run_stage_two(tiny_config(data=data), run)
    files = [path for folder in (run, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert read_json(run / "data.json")["count"] == len(training_images(digits))
    assert read_json(run / "model" / "config.json")["config"]["data"]["prepared"] == "s3://sets/digits"
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_what_is_not_in_the_bucket_is_told(digits: DataConfig, bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^s3://sets/faces/train/index\.json: not there; expected a copy"):
        training_images(moved(digits, "s3://sets/faces", tmp_path))
    bucket.delete_object(Bucket="sets", Key="digits/train/shard-000001.tar")
    with pytest.raises(DataError, match=r"^s3://sets/digits/train/shard-000001\.tar: not there"):
        training_images(moved(digits, "s3://sets/digits", tmp_path))


def test_a_package_that_is_missing_is_named(
    digits: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: Any, **__: Any) -> Any:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fetching, "url_to_fs", without)
    with pytest.raises(DataError, match=r"gs://sets/digits/train: needs packages .* pip install 'cdrl\[remote\]'"):
        training_images(moved(digits, "gs://sets/digits", tmp_path))


def test_a_set_on_a_hub_is_the_set_here(digits: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = Path(str(digits.prepared))
    with running_hub() as running:
        files = {
            f"shards/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        running.repositories["someone/digits"] = files
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": running.address, "token": False})
        hub.HfFileSystem.clear_instance_cache()
        there = moved(digits, "hf://someone/digits/shards", tmp_path, stream=True)
        for split in ("train", "test"):
            assert torch.equal(training_images(digits, split).grids[:], training_images(there, split).grids[:])
