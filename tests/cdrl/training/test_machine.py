"""The number of threads that training takes: the fastest by the clock, looked for again when updates slow down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cdrl.runs.run import Run, load_tensors, read_json
from cdrl.training.engine import World
from cdrl.training.machine import (
    AGAIN_AFTER,
    ROUNDS,
    WINDOW,
    Threads,
    computes_in_bfloat16,
    idle_cores,
    seconds_with_each,
    thread_numbers,
)
from pipelines.jobs.training import run_stage_two
from tests.helpers import tiny_config

ALONE = World(0, 1, torch.device("cpu"))
CHOOSING = 1 + 2 * ROUNDS
"""Updates that it takes at most to time two numbers, behind the first, which is none of them."""


class Clock:
    """A clock that stands still but for updates."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def updates(threads: Threads, clock: Clock, count: int, seconds: Callable[[int], float]) -> list[int]:
    """Make updates that take ``seconds`` of the number of threads; the numbers that they were made with."""
    numbers = []
    for _ in range(count):
        with threads.update():
            numbers.append(torch.get_num_threads())
            clock.now += seconds(numbers[-1])
    return numbers


def alone(number: int) -> float:
    return {1: 0.4, 2: 0.3}[number]


def beside_another(number: int) -> float:
    return {1: 0.4, 2: 1.0}[number]


def beside_many(number: int) -> float:
    return {1: 0.4, 2: 10.0}[number]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("seconds", "timed", "expected"),
    # Two threads that take more than twice the time are not waited for again.
    [(alone, [2, *[2, 1] * ROUNDS], 2), (beside_another, [2, 2, 1, *[1] * (ROUNDS - 1)], 1)],
)
def test_the_faster_number_is_chosen_and_told(
    seconds: Callable[[int], float], timed: list[int], expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    assert updates(threads, clock, len(timed), seconds) == timed
    assert updates(threads, clock, 30, seconds) == [expected] * 30
    assert threads.number == expected
    told = f"an update takes {seconds(2):.3g} s with 2, {seconds(1):.3g} s with 1"
    assert capfd.readouterr().err == f"threads: {expected} (auto: {told})\n"


@pytest.mark.usefixtures("two_threads")
def test_on_many_cores_few_threads_are_not_waited_for() -> None:
    torch.set_num_threads(16)
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    numbers = updates(threads, clock, 20, lambda number: 16 / number)
    assert numbers[:4] == [16, 16, 8, 4]
    assert set(numbers[4:]) == {16, 8}
    assert threads.number == 16


@pytest.mark.usefixtures("two_threads")
def test_a_slow_first_update_and_a_small_gain_change_nothing() -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    updates(threads, clock, 1, lambda number: 60.0)
    updates(threads, clock, CHOOSING - 1, lambda number: {1: 0.95, 2: 1.0}[number])
    assert threads.number == 2


@pytest.mark.usefixtures("two_threads")
def test_when_a_neighbour_comes_one_thread_is_left_and_when_it_goes_both_are_taken_again() -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    updates(threads, clock, CHOOSING + 3 * WINDOW, alone)
    assert threads.number == 2
    updates(threads, clock, WINDOW + CHOOSING, beside_another)
    assert threads.number == 1
    after_seconds, after_updates = AGAIN_AFTER
    updates(threads, clock, int(max(after_seconds / 0.4, after_updates)) + 1 + CHOOSING, alone)
    assert threads.number == 2


@pytest.mark.usefixtures("two_threads")
def test_updates_that_have_become_slow_with_every_number_are_not_timed_for_ever() -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    updates(threads, clock, CHOOSING + WINDOW, alone)
    numbers = updates(threads, clock, 1000, lambda number: 5 * alone(number))
    assert numbers.count(1) == ROUNDS


@pytest.mark.usefixtures("two_threads")
def test_beside_a_neighbour_that_stays_both_are_tried_ever_more_seldom() -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, clock=clock)
    numbers = updates(threads, clock, 20_000, beside_another)
    tried = [index for index, number in enumerate(numbers) if number == 2][2:]
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert pauses[0] == pytest.approx(2 * AGAIN_AFTER[0] / 0.4, rel=0.05)
    assert pauses[1:] == pytest.approx([2 * pause for pause in pauses[:-1]], rel=0.05)


@pytest.mark.usefixtures("two_threads")
def test_a_run_goes_on_with_its_number() -> None:
    clock = Clock()
    threads = Threads("auto", ALONE, chosen_before=1, clock=clock)
    assert updates(threads, clock, 50, alone) == [1] * 50


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("setting", ["auto", 1, 3])
def test_whoever_says_a_number_gets_it(setting: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads = Threads(setting, ALONE)  # type: ignore[arg-type]
    expected = 2 if setting == "auto" else setting
    with threads.in_use():
        assert updates(threads, Clock(), 30, lambda number: 1.0) == [expected] * 30
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("world", [World(0, 2, torch.device("cpu")), World(0, 1, torch.device("cuda", 0))], ids=str)
def test_several_processes_and_gpus_keep_what_they_have(world: World) -> None:
    assert updates(Threads("auto", world), Clock(), 30, lambda number: 1.0) == [2] * 30


@pytest.mark.usefixtures("two_threads")
def test_a_run_keeps_its_number_with_its_checkpoint_and_its_model(tmp_path: Path) -> None:
    run_stage_two(tiny_config(threads=1), tmp_path)
    assert torch.get_num_threads() == 2
    assert read_json(Run(tmp_path).checkpoint_path(6) / "state.json")["threads"] == 1
    assert read_json(tmp_path / "model" / "config.json")["threads"] == 1


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("seconds", "known"),
    [(alone, {2: 0.3, 1: 0.4}), (beside_another, {2: 1.0, 1: 0.4}), (beside_many, {1: 0.4})],
    ids=["alone", "beside", "many"],
)
def test_work_is_timed_with_each_number_but_those_that_are_given_up(
    seconds: Callable[[int], float], known: dict[int, float]
) -> None:
    clock, tried = Clock(), []

    def work() -> None:
        tried.append(torch.get_num_threads())
        clock.now += seconds(tried[-1])

    found = seconds_with_each(work, thread_numbers("auto", ALONE), 3, clock)
    assert found == pytest.approx(known)
    assert torch.get_num_threads() == 2
    # In turn, a round before the three that count; the hopeless in that one alone.
    assert tried == ([2, 1, *[1] * 3] if len(known) == 1 else [2, 1] * 4)


def test_threads_are_put_back_where_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    with pytest.raises(KeyError), idle_cores(lambda: {}["clock"]):  # type: ignore[index]
        pytest.fail("entered")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("seconds", "expected"), [(alone, 2), (beside_another, 1)], ids=["alone", "beside"])
def test_other_work_leaves_one_thread_and_is_told(
    seconds: Callable[[int], float], expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Looks:
        """Every second look is behind the work."""

        def __init__(self) -> None:
            self.now, self.looks = 0.0, 0

        def __call__(self) -> float:
            self.looks += 1
            if self.looks % 2 == 0:
                self.now += seconds(torch.get_num_threads())
            return self.now

    with idle_cores(Looks()) as number:
        assert number == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2
    told = capsys.readouterr().err
    assert told == ("" if expected == 2 else "threads: 1 of 2: other work keeps cores busy\n")


@pytest.mark.usefixtures("two_threads")
def test_a_number_that_the_environment_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with idle_cores(lambda: pytest.fail("timed")) as number:
        assert number == 2


@pytest.mark.parametrize(
    ("built_in", "chosen"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)]
)
def test_precision_auto_is_bfloat16_only_where_the_processor_has_it(
    built_in: dict[str, bool], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: built_in)
    cpu = torch.device("cpu")
    assert computes_in_bfloat16("auto", cpu) == chosen
    assert computes_in_bfloat16("bfloat16", cpu)
    assert not computes_in_bfloat16("float32", cpu)


@pytest.mark.parametrize(("built_in", "chosen"), [(True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize(("setting", "who"), [("chain_dtype", "chains compute"), ("learning_dtype", "energies learn")])
def test_precision_auto_computes_in_bfloat16_where_it_is_built_in_and_says_so(
    setting: str,
    who: str,
    built_in: bool,
    chosen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": built_in})
    other = "float32" if chosen == "bfloat16" else "bfloat16"
    for name, precision in (("auto", "auto"), ("named", chosen), ("other", other)):
        run_stage_two(tiny_config(training={setting: precision, "num_steps": 2}), tmp_path / name)
    assert capfd.readouterr().err.count(f"{who} in {chosen} (training.{setting}: auto)") == 1
    auto, named, rest = (
        load_tensors(tmp_path / name / "model" / "energy.safetensors") for name in ("auto", "named", "other")
    )
    assert all(torch.equal(auto[name], named[name]) for name in auto)
    assert {weight.dtype for weight in auto.values()} == {torch.float32}
    assert not all(torch.equal(auto[name], rest[name]) for name in auto)
