"""Run folders: written whole or not at all, resumed only as they were, damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cdrl import load_config
from cdrl.runs.model_folder import load_model, load_weights
from cdrl.runs.run import (
    MetricsLog,
    Run,
    RunError,
    load_tensors,
    read_json,
    read_yaml,
    save_tensors,
    write_json,
)
from cdrl.runs.whole import written_whole
from tests.helpers import save_tiny_run, tiny_config, tiny_model


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file"]


def test_a_failed_writing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("old")

    def write_half(path: Path) -> None:
        with written_whole(path) as partial:
            if path.is_dir():
                partial.mkdir()
                partial /= "inner"
            partial.write_text("new")
            raise ZeroDivisionError

    for path in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(ZeroDivisionError):
            write_half(path)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inner").read_text() == "old"


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("a", "b"):
        with written_whole(path) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert names(path) == ["b"]
    assert names(tmp_path) == ["model"]


def test_what_a_crash_left_half_written_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".partial-model").mkdir()
    (tmp_path / ".partial-model" / "junk").write_text("junk")
    with written_whole(tmp_path / "model") as partial:
        partial.mkdir()
    assert names(tmp_path / "model") == []


def test_a_run_can_be_opened_again_with_the_same_configuration(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    before = (tmp_path / "run" / "config.yaml").read_text()
    run.open(tiny_config())
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_run_of_another_configuration_is_refused_with_the_keys_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    run.checkpoint_path(3).mkdir(parents=True)
    with pytest.raises(RunError) as error:
        run.open(tiny_config(training={"batch_size": 4}, seed=7))
    message = str(error.value)
    assert str(tmp_path / "run") in message
    assert "seed is 0 there, 7 here" in message
    assert "training.batch_size is 8 there, 4 here" in message
    assert "ema" not in message


def test_what_changes_nothing_of_what_is_learned_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    run.checkpoint_path(3).mkdir(parents=True)
    changed = tiny_config(
        training={"log_every": 7, "num_steps": 9}, sampling={"steps": 4}, evaluation={"every": 5}, data={"cache": "x"}
    )
    run.open(changed)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.folder}: goes on with data.cache 'data' -> 'x', training.num_steps 6 -> 9, ")
    assert load_config(run.folder / "config.yaml") == changed
    run.open(changed)
    assert capsys.readouterr().err == ""
    with pytest.raises(
        RunError,
        match=r"longer run already \(training.num_steps is 9 there, 6 here\): type training.num_steps=9, or more",
    ):
        run.open(tiny_config())
    assert load_config(run.folder / "config.yaml") == changed


def test_a_run_can_be_prolonged_from_a_checkpoint_only(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    run.model.mkdir()
    with pytest.raises(RunError, match="no checkpoint is left to go on from"):
        run.open(tiny_config(training={"num_steps": 9}))


def test_settings_that_came_later_count_as_their_defaults_and_those_that_went_are_changes(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    run.checkpoint_path(3).mkdir(parents=True)
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("  pairs: shared_noise\n", ""))
    run.open(tiny_config())
    with pytest.raises(RunError, match=r"training\.pairs is 'shared_noise' there, 'independent_noise' here"):
        run.open(tiny_config(training={"pairs": "independent_noise"}))
    path.write_text(path.read_text() + "colour: red\n")
    with pytest.raises(RunError, match="colour is 'red' there, None here"):
        run.open(tiny_config())


def test_a_folder_without_a_checkpoint_binds_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.open(tiny_config())
    run.bind_data({"count": 3})
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (run.folder / "latents").mkdir()
    run.open(tiny_config(seed=7))
    assert read_yaml(run.folder / "config.yaml")["seed"] == 7
    assert names(run.folder) == ["config.yaml", "latents"]
    run.bind_data({"count": 4})
    assert read_json(run.folder / "data.json") == {"count": 4}


def test_files_that_lie_where_a_run_is_to_be_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.png").touch()
    Run(tmp_path).open(tiny_config())
    assert (tmp_path / "samples" / "mine.png").exists()


def test_a_run_with_a_checkpoint_is_bound_to_its_data(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoint_path(3).mkdir(parents=True)
    run.bind_data({"count": 3, "shape": (1, 8, 8), "contents": "a"})  # begun before there were such facts
    run.bind_data({"count": 3, "shape": (1, 8, 8), "contents": "a"})
    with pytest.raises(RunError, match=r"data have changed since its last checkpoint \(count is 3 there, 4 here; "):
        run.bind_data({"count": 4, "shape": (1, 8, 8), "contents": "b"})


def test_a_run_with_a_checkpoint_is_bound_to_the_images_it_is_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.checkpoint_path(3).mkdir(parents=True)
    write_json(tmp_path / "data.json", {"count": 3})  # of before these were noted
    facts = {"count": 3, "measured_on": {"count": 2, "contents": "a"}}
    run.bind_data(facts)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'data.json'}: says nothing of the images that the run is measured on")
    run.bind_data(facts)
    run.bind_data({"count": 3})  # not measured this time
    assert capsys.readouterr().err == ""
    assert read_json(tmp_path / "data.json") == facts
    with pytest.raises(RunError, match=r"the images that it is measured on have changed .*measured_on.contents is 'a'"):
        run.bind_data({"count": 3, "measured_on": {"count": 2, "contents": "b"}})
    with pytest.raises(RunError, match="its training data have changed"):
        run.bind_data({"count": 4, "measured_on": {"count": 2, "contents": "a"}})


def test_opening_a_run_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.open(tiny_config())
    for path in (".old-model", ".partial-best", "checkpoints/.gone-step_00000003", "samples/.partial-step_3.png"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / ".partial-detection.json").touch()  # of another command, which may be at work
    run.open(tiny_config())
    assert names(tmp_path) == [".partial-detection.json", "checkpoints", "config.yaml", "model", "samples"]
    assert names(run.checkpoints) == names(tmp_path / "samples") == []


def test_the_way_on_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (5, 20):
        run.checkpoint_path(step).mkdir(parents=True)
    assert run.way_on_without(run.checkpoint_path(20)) == f"remove {run.checkpoint_path(20)} to go on from step 5"
    assert run.way_on_without(run.checkpoint_path(5)) == f"remove {run.checkpoint_path(5)} to begin anew"


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.last_checkpoint() is None
    for step in (5, 20, 100):
        run.checkpoint_path(step).mkdir(parents=True)
    (run.checkpoints / ".partial-step_00000500").mkdir()
    (run.checkpoints / "step_00000100_kept_aside").mkdir()
    assert run.last_checkpoint() == (100, run.checkpoint_path(100))


def test_pruning_keeps_the_newest_and_removes_what_was_half_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (5, 20, 100):
        run.checkpoint_path(step).mkdir(parents=True)
    (run.checkpoints / ".partial-step_00000500").mkdir()
    (run.checkpoints / ".old-step_00000005").mkdir()
    run.prune_checkpoints(keep=2)
    assert names(run.checkpoints) == ["step_00000020", "step_00000100"]


def test_the_log_forgets_what_came_after_the_checkpoint_and_a_line_cut_short(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, from_step=0)
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": step / 2, "gap": [0.0, 1.0]})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = MetricsLog(tmp_path, from_step=2)
    log.write(3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0] == {"step": 1, "loss": 0.5, "gap": [0.0, 1.0]}
    assert lines[2] == {"step": 3, "loss": 9.0}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_tensors_and_json_read_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    save_tensors(tmp_path / "t.safetensors", tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in load_tensors(tmp_path / "t.safetensors").items())
    write_json(tmp_path / "j.json", {"x": [1, 2.5, None]})
    assert read_json(tmp_path / "j.json") == {"x": [1, 2.5, None]}


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_missing_and_damaged_tensors_are_named(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "t.safetensors"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(RunError, match=r"t\.safetensors: (no such file|not a whole safetensors file)"):
        load_tensors(path)


def test_tensors_cut_short_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"t\.safetensors: not a whole safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_missing_and_damaged_json_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "j.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=r"j\.json"):
        read_json(path)


def test_weights_of_another_model_are_refused_with_the_tensor_named(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "w.safetensors"
    whole = model.energy.state_dict()
    changed = {
        "lacks 'head.weight'": {name: tensor for name, tensor in whole.items() if name != "head.weight"},
        "also holds 'zzz'": {**whole, "zzz": torch.zeros(1)},
        r"'head.weight' is \[1, 2\], expected": {**whole, "head.weight": torch.zeros(1, 2)},
    }
    for message, tensors in changed.items():
        save_tensors(path, tensors)
        with pytest.raises(RunError, match=rf"w\.safetensors: of another model: .*{message}"):
            load_weights(model.energy, path)


def test_a_saved_model_answers_as_before_and_stands_still(tmp_path: Path) -> None:
    model = save_tiny_run(tmp_path)
    loaded, record = load_model(tmp_path / "model")
    y = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(loaded.log_density(y, 1, 4), model.log_density(y, 1, 4), rtol=0, atol=0)
    torch.testing.assert_close(loaded.propose(y, 1, 4), model.propose(y, 1, 4), rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert record.class_names == [str(digit) for digit in range(10)]
    assert names(tmp_path / "model") == ["config.json", "energy.safetensors", "initializer.safetensors"]


def test_a_model_of_another_format_is_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    path = tmp_path / "model" / "config.json"
    write_json(path, {**read_json(path), "format": 99})
    with pytest.raises(RunError, match=r"config\.json: format: expected 1"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("key", ["config", "shape", "num_classes"])
def test_a_description_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    save_tiny_run(tmp_path)
    path = tmp_path / "model" / "config.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != key})
    with pytest.raises(RunError, match=rf"config\.json: .*{key}"):
        load_model(tmp_path / "model")
