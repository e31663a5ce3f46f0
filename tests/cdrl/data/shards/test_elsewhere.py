"""Shards elsewhere: that they are those of a folder here, whatever the server does, and that the cache stays whole."""

from __future__ import annotations

import hashlib
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data import (
    DataError,
    Elsewhere,
    Sample,
    ShardCache,
    TrainingSet,
    load_images,
    stream_shards,
    training_images,
    write_shards,
)
from cdrl.data.shards import fetching
from cdrl.data.shards.prepared import local_folder, preparation, read_prepared, write_prepared
from cdrl.data.sources import open_source
from tests.data_server import DataServer, serving
from tests.helpers import ROOT

COUNT, SHARD = 60, 3
ENOUGH = 2**30


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fetching, "_LONGEST_PAUSE", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten shards of images that tell their own number."""
    pixels = torch.randint(256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pixels[:, 0, 0, 0] = torch.arange(COUNT)
    samples = [Sample(image, row % 3, (row % 2 == 0,)) for row, image in enumerate(pixels)]
    write_shards(tmp_path / "set", samples, {"source": "test"}, SHARD, ("a", "b", "c"), ("even",))
    return tmp_path / "set"


@pytest.fixture
def server(folder: Path) -> Iterator[DataServer]:
    with serving(folder) as running:
        yield running


def elsewhere(server: DataServer, cache: Path, most_bytes: int = ENOUGH) -> Elsewhere:
    return Elsewhere(server.address, ShardCache(cache, most_bytes))


def kept(cache: Path) -> dict[str, int]:
    """Names and sizes of everything in a cache but its locks."""
    return (
        {path.name: path.stat().st_size for path in cache.iterdir() if path.name != "locks"} if cache.exists() else {}
    )


def shard_bytes(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.glob("*.tar"))


def asked_for_shards(server: DataServer) -> int:
    return sum(count for path, count in server.asked.items() if path.endswith(".tar"))


def served_numbers(data: TrainingSet, steps: int) -> list[int]:
    """What the images of some steps tell of their numbers."""
    batches = [data.batch(step)[0] for step in range(steps)]
    return [round(float((image[0, 0, 0] + 1) * 127.5)) for batch in batches for image in batch]


def test_a_set_elsewhere_is_the_set_here(folder: Path, server: DataServer, tmp_path: Path) -> None:
    here, there = stream_shards(folder), stream_shards(elsewhere(server, tmp_path / "cache"))
    assert (len(there), there.grids.shape, there.grids.dtype) == (COUNT, (COUNT, 3, 16, 16), torch.uint8)
    for rows in (slice(None), slice(5, 8), torch.tensor([59, 0, 7, 7]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(there.grids[rows], here.grids[rows])
    for name in ("labels", "attributes"):
        assert torch.equal(getattr(there, name), getattr(here, name))
    assert (there.label_names, there.attribute_names, there.metadata) == (
        here.label_names,
        here.attribute_names,
        here.metadata,
    )
    assert there.grids.checksum == here.grids.checksum  # type: ignore[attr-defined]
    assert torch.equal(pickle.loads(pickle.dumps(there.grids))[3:5], here.grids[3:5])
    assert set(server.asked.values()) == {1}
    assert not server.parts


def test_batches_are_those_of_a_folder_here_in_every_process(folder: Path, server: DataServer, tmp_path: Path) -> None:
    here = TrainingSet(stream_shards(folder).grids, 8, seed=1)
    there = TrainingSet(stream_shards(elsewhere(server, tmp_path / "cache")).grids, 8, seed=1)
    for step in [*range(16), 3, 100]:
        for rows in (range(0, 4), range(4, 8)):
            assert torch.equal(there.batch(step, rows)[0], here.batch(step, rows)[0])
    assert sorted(served_numbers(there, COUNT // 4)[:COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("room", ["for all", "for three shards"])
def test_a_bad_server_loses_no_image_and_repeats_none(folder: Path, tmp_path: Path, room: str) -> None:
    manners = {"pause": 0.001, "failing": 0.2, "cutting": 0.1, "lying": ("shard-000003.tar",)}
    most = ENOUGH if room == "for all" else 3 * shard_bytes(folder) + 100
    with serving(folder, **manners) as server:
        grids = stream_shards(elsewhere(server, tmp_path / "cache", most)).grids
        assert sorted(served_numbers(TrainingSet(grids, 6, seed=1), COUNT // 6)) == list(range(COUNT))
        assert torch.equal(grids[:], stream_shards(folder).grids[:])
        assert min(server.trouble[name] for name in ("failed", "cut", "lied")) > 0
    for name in kept(tmp_path / "cache"):
        content = (tmp_path / "cache" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == name


def test_the_cache_keeps_what_was_used_last(folder: Path, server: DataServer, tmp_path: Path) -> None:
    cache, most = tmp_path / "cache", 3 * shard_bytes(folder)
    grids = stream_shards(elsewhere(server, cache, most)).grids
    for shard in (0, 1, 2, 0, 3, 4):
        grids[SHARD * shard : SHARD * (shard + 1)]
        assert sum(kept(cache).values()) <= most
    before = asked_for_shards(server)
    grids[:SHARD]  # it was used again, and did not make room
    assert asked_for_shards(server) == before
    grids[SHARD : 2 * SHARD]  # it did
    assert asked_for_shards(server) == before + 1
    assert torch.equal(grids[:], stream_shards(folder).grids[:])
    assert sum(kept(cache).values()) <= most


def test_in_random_order_single_images_of_a_large_set_are_fetched(
    folder: Path, server: DataServer, tmp_path: Path
) -> None:
    here = stream_shards(folder).grids
    grids = stream_shards(elsewhere(server, tmp_path / "cache", 3 * shard_bytes(folder))).grids
    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grids[rows], here[rows])
    assert (asked_for_shards(server), server.parts.total()) == (0, COUNT)
    grids[:SHARD]
    assert torch.equal(grids[rows], here[rows])
    assert (asked_for_shards(server), server.parts.total()) == (1, 2 * COUNT - SHARD)


def test_a_server_that_gives_no_parts_gives_whole_shards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(folder, knows_parts=False) as server:
        grids = stream_shards(elsewhere(server, tmp_path / "cache", 3 * shard_bytes(folder))).grids
        rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            assert torch.equal(grids[rows], stream_shards(folder).grids[rows])
    assert capsys.readouterr().err.count("gives no parts of files") == 1


def test_what_follows_is_fetched_ahead(folder: Path, server: DataServer, tmp_path: Path) -> None:
    grids = stream_shards(elsewhere(server, tmp_path / "cache")).grids
    grids[:2]
    assert asked_for_shards(server) == 1
    grids[2:3]
    deadline = 50
    while asked_for_shards(server) < 2 and deadline:
        server.sending.wait(0.05)
        server.sending.clear()
        deadline -= 1
    assert {path for path in server.asked if path.endswith(".tar")} == {"/shard-000000.tar", "/shard-000001.tar"}
    assert torch.equal(grids[:], stream_shards(folder).grids[:])
    assert set(server.asked.values()) == {1}


def _read_all(address: str, cache: Path, barrier: Any, results: Any) -> None:
    grids = stream_shards(Elsewhere(address, ShardCache(cache, ENOUGH))).grids
    barrier.wait()
    results.put(hashlib.sha256(grids[torch.arange(COUNT)].numpy().tobytes()).hexdigest())


def test_processes_that_share_a_cache_fetch_a_shard_once(folder: Path, tmp_path: Path) -> None:
    fork = get_context("fork")
    with serving(folder, pause=0.002) as server:
        barrier, results = fork.Barrier(3), fork.Queue()
        arguments = (server.address, tmp_path / "cache", barrier, results)
        processes = [fork.Process(target=_read_all, args=arguments) for _ in range(3)]
        for process in processes:
            process.start()
        seen = {results.get(timeout=60) for _ in processes}
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        fetched = {path: count for path, count in server.asked.items() if path != "/index.json"}
    assert seen == {hashlib.sha256(stream_shards(folder).grids[:].numpy().tobytes()).hexdigest()}
    assert len(fetched) == COUNT // SHARD + 1
    assert set(fetched.values()) == {1}


READ = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a command in the background begins without
from cdrl.data import Elsewhere, ShardCache, stream_shards
grids = stream_shards(Elsewhere(sys.argv[1], ShardCache(Path(sys.argv[2]), 2**30))).grids
print("opened", flush=True)
grids[:]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_nothing_by_half(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    cache = tmp_path / "cache"
    with serving(folder) as server:
        command = [sys.executable, "-c", READ, server.address, str(cache)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            server.manners.pause = 0.05
            assert process.stdout.readline() == "opened\n"
            server.manners.pause = 1.0
            assert server.sending.wait(60)
            process.send_signal(number)
            process.wait(20)
            assert process.returncode != 0
        table = hashlib.sha256((folder / "samples.safetensors").read_bytes()).hexdigest()
        if number == signal.SIGINT:
            assert kept(cache).keys() == {table}
        assert {name for name in kept(cache) if not name.startswith(".partial-")} == {table}
        # Whatever a killed process left is gone as soon as another one has fetched.
        server.manners.pause = 0
        grids = stream_shards(elsewhere(server, cache)).grids
        assert torch.equal(grids[:], stream_shards(folder).grids[:])
    assert not [name for name in kept(cache) if name.startswith(".partial-")]


def test_what_this_machine_lost_is_fetched_again(folder: Path, server: DataServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    grids = stream_shards(elsewhere(server, cache)).grids
    grids[:]
    shard = cache / hashlib.sha256((folder / "shard-000002.tar").read_bytes()).hexdigest()
    shard.write_bytes(bytes(shard.stat().st_size))
    assert torch.equal(grids[:], stream_shards(folder).grids[:])
    assert server.asked["/shard-000002.tar"] == 2


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message", "times"),
    [
        (
            lambda folder: spoil(folder / "shard-000001.tar"),
            "shard-000001.tar: cannot be fetched, tried 10 times.*256",
            10,
        ),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar: not there; expected a copy", 1),
    ],
)
def test_what_is_wrong_there_is_told(
    folder: Path, server: DataServer, tmp_path: Path, damage: Callable[[Path], None], message: str, times: int
) -> None:
    grids = stream_shards(elsewhere(server, tmp_path / "cache")).grids
    damage(folder)
    with pytest.raises(DataError, match=f"^{server.address}/{message}"):
        grids[:]
    assert server.asked["/shard-000001.tar"] == times
    assert not [name for name in kept(tmp_path / "cache") if name.startswith(".partial-")]


@pytest.mark.parametrize(("status", "times"), [(403, 1), (404, 1), (429, 10), (500, 10)])
def test_answers_that_will_be_the_same_are_not_asked_for_again(
    folder: Path, tmp_path: Path, status: int, times: int
) -> None:
    with serving(folder, status=status) as server, pytest.raises(DataError, match=r"index\.json: (not there|cannot)"):
        stream_shards(elsewhere(server, tmp_path / "cache"))
    assert server.asked["/index.json"] == times


def test_a_shard_larger_than_the_cache_is_told(folder: Path, server: DataServer, tmp_path: Path) -> None:
    grids = stream_shards(elsewhere(server, tmp_path / "cache", shard_bytes(folder) // 2)).grids
    with pytest.raises(DataError, match=r"data\.cache_gib=\S+: a shard of \S+ GiB does not fit in"):
        grids[:3]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shard-000001.tar"', '"$(touch x).tar"'),
        ('"shard-000001.tar"', '"a?b.tar"'),
        ('"sha256": "', '"sha256": "../'),
    ],
)
def test_names_that_would_be_more_than_names_are_refused(
    folder: Path, server: DataServer, tmp_path: Path, old: str, new: str
) -> None:
    index = folder / "index.json"
    text = index.read_text()
    assert old in text
    index.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=r"index\.json: expected"):
        stream_shards(elsewhere(server, tmp_path / "cache"))


# ---- as a run has it ------------------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path) -> DataConfig:
    """Digits, prepared on this machine."""
    data = DataConfig(name="digits", image_size=8, channels=1, labels="class", prepared=tmp_path / "digits")
    for split in ("train", "test"):
        write_prepared(data, split, open_source(data, split))
    return data


def moved(data: DataConfig, place: str, tmp_path: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({**data.model_dump(), "prepared": place, "cache": tmp_path / "cache", **fields})


@pytest.mark.parametrize("stream", [True, False])
def test_both_doors_to_images_lead_elsewhere(digits: DataConfig, tmp_path: Path, stream: bool) -> None:
    with serving(local_folder(digits)) as server:
        there = moved(digits, server.address, tmp_path, stream=stream)
        for split in ("train", "test"):
            one, other = training_images(digits, split), training_images(there, split)
            assert torch.equal(one.grids[:], other.grids[:])
            assert isinstance(other.grids, Tensor) != stream
            assert torch.equal(load_images(digits, split).images, load_images(there, split).images)
        other_size = moved(digits, server.address, tmp_path, image_size=16)
        with pytest.raises(DataError, match=r"prepared otherwise \(image_size: 8 there, 16 here\)"):
            read_prepared(other_size, "train", stream=stream)


def test_nothing_is_prepared_elsewhere(digits: DataConfig, tmp_path: Path) -> None:
    there = moved(digits, "s3://bucket/digits", tmp_path)
    with pytest.raises(DataError, match="written to folders of this machine alone: prepare into one, and copy it"):
        write_prepared(there, "train", open_source(digits, "train"))


def test_a_command_is_run_where_the_environment_allows_it(
    digits: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = moved(digits, f"pipe:cat {local_folder(digits)}/{{}}", tmp_path, stream=True)
    with pytest.raises(DataError, match="allow it by CDRL_ALLOW_PIPE=1"):
        training_images(there)
    monkeypatch.setenv("CDRL_ALLOW_PIPE", "1")
    assert torch.equal(training_images(there).grids[:], training_images(digits).grids[:])
    with pytest.raises(DataError, match="there is no command nothing-such here"):
        training_images(moved(digits, "pipe:nothing-such {}", tmp_path))
    rows = torch.tensor([500, 3, 77])
    tight = moved(digits, str(there.prepared), tmp_path / "other", stream=True, cache_gib=2e-3)
    assert torch.equal(training_images(tight).grids[rows], training_images(digits).grids[rows])


def test_a_command_that_fails_now_and_then_is_run_again(
    digits: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "sometimes.sh"
    script.write_text(f'echo x >> {tmp_path}/runs\n[ $(($(wc -l < {tmp_path}/runs) % 3)) = 0 ] && cat "$1"\n')
    monkeypatch.setenv("CDRL_ALLOW_PIPE", "1")
    there = moved(digits, f"pipe:sh {script} {local_folder(digits)}/{{}}", tmp_path)
    assert torch.equal(training_images(there).grids[:], training_images(digits).grids[:])
    assert preparation(there, "train") == preparation(digits, "train")
