"""Reading, merging and overriding configurations; one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdrl.config import Config, ConfigError
from cdrl.config_files import dump_config, load_config, parse_config
from tests.helpers import tiny_config, tiny_values, write_config


def mistake(path: Path, *overrides: str) -> str:
    """The message that loading ends with: a single line."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    assert str(error.value).strip()
    return str(error.value)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return write_config(tmp_path / "run.yaml", tiny_values())


def test_the_papers_values_are_the_defaults() -> None:
    config = parse_config({"space": "pixel", "data": {"name": "digits"}}, source="x")
    assert (config.schedule.num_levels, config.schedule.logsnr_max, config.schedule.logsnr_min) == (6, 9.8, -5.1)
    training = config.training
    assert (training.num_steps, training.batch_size, training.langevin_steps) == (400_000, 256, 15)
    assert (training.energy_lr, training.initializer_lr, training.warmup_steps) == (1e-4, 1e-5, 10_000)
    assert (training.initializer_head_start, training.ema, training.gradient_clip) == (500, 0.9999, 1.0)
    assert (training.label_dropout, config.sampling.denoise) == (0.1, 2.0)
    assert (config.energy.channels, config.energy.num_blocks, config.energy.multipliers) == (128, 8, (1, 2, 2, 2))


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    for config in (tiny_config(), tiny_config(space="latent", autoencoder={"training": {"num_steps": 3}})):
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


def test_a_base_is_merged_section_by_section(tmp_path: Path) -> None:
    write_config(tmp_path / "base.yaml", tiny_values())
    (tmp_path / "sub").mkdir()
    write_config(tmp_path / "middle.yaml", {"base": "base.yaml", "training": {"batch_size": 16}})
    top = write_config(
        tmp_path / "sub" / "top.yaml", {"base": "../middle.yaml", "training": {"ema": 0.5}, "energy": {"channels": 6}}
    )
    config = load_config(top)
    assert (config.training.batch_size, config.training.ema, config.training.num_steps) == (16, 0.5, 6)
    assert (config.energy.channels, config.energy.multipliers) == (6, (1, 2))


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.batch_size=64", "training", "batch_size", 64),
        ("training.energy_lr=2.0e-4", "training", "energy_lr", 2e-4),
        ("energy.multipliers=[1, 2, 2]", "energy", "multipliers", (1, 2, 2)),
        ("energy.spectral_norm=false", "energy", "spectral_norm", False),
        ("sampling.steps=null", "sampling", "steps", None),
        ("data.labels=none", "data", "labels", "none"),
        ("data.path=a=b", "data", "path", Path("a=b")),
        ("deepspeed.zero_stage=3", "deepspeed", "zero_stage", 3),
        ("schedule.kind=drl", "schedule", "step_coefficient", 2e-4),
    ],
)
def test_overrides_are_yaml_values(config_file: Path, override: str, section: str, key: str, value: Any) -> None:
    assert getattr(getattr(load_config(config_file, [override]), section), key) == value


def test_a_section_may_be_left_out_over_its_base(config_file: Path, tmp_path: Path) -> None:
    top = write_config(tmp_path / "top.yaml", {"base": config_file.name, "initializer": None})
    for config in (load_config(top), load_config(config_file, ["initializer=null"])):
        assert config.initializer is None
        dumped = tmp_path / "dumped.yaml"
        dumped.write_text(dump_config(config), encoding="utf-8")
        assert load_config(dumped) == config


def test_a_later_override_wins_and_sections_appear_when_named(config_file: Path) -> None:
    config = load_config(config_file, ["seed=1", "seed=2", "autoencoder.architecture.latent_channels=7"])
    assert config.seed == 2
    assert config.autoencoder is not None
    assert config.autoencoder.architecture.latent_channels == 7


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.batchsize=8", "unknown key 'training.batchsize'"),
        ("trainings.batch_size=8", "unknown key 'trainings'"),
        ("training.batch_size=eight", "training.batch_size: "),
        ("training.batch_size=0", "training.batch_size: "),
        ("training.batch_size=1.5", "training.batch_size: "),
        ("training.ema=1.0", "training.ema: "),
        ("training.energy_lr=.inf", "training.energy_lr: "),
        ("training.chain_dtype=float16", "training.chain_dtype: "),
        ("energy.multipliers=2", "energy.multipliers: "),
        ("energy.spectral_norm=perhaps", "energy.spectral_norm: "),
        ("schedule.num_levels=1", "schedule.num_levels: "),
        ("schedule.logsnr_min=10", "schedule.logsnr_max must exceed schedule.logsnr_min"),
        ("schedule.kind=linear", "schedule.kind: "),
        ("schedule={kind: drl, logsnr_max: 6}", "logsnr_min are for kind cosine: leave them out for kind drl"),
        ("schedule={kind: drl, num_levels: 501}", "schedule.num_levels must be at most 500 for kind drl"),
        ("training.pairs=none", "training.pairs: "),
        ("training.on_divergence=ignore", "training.on_divergence: "),
        ("initializer.predicts=noise", "initializer.predicts: "),
        ("initializer.target=y", "initializer.target: "),
        ("deepspeed.zero_stage=4", "deepspeed.zero_stage: "),
        ("space=voxel", "space: "),
        ("space=latent", "space: latent needs an autoencoder section"),
        ("space=point", "space: point goes with data.name=checkerboard"),
        ("data.name=checkerboard", "space: point goes with data.name=checkerboard"),
        ("energy.fourier_features=8", "initializer.fourier_features go with space: point only"),
        ("initializer.fourier_features=8", "initializer.fourier_features go with space: point only"),
        ("data.name=cifar10", "data.path is required for data.name=cifar10"),
        ("data.name=mnist", "data.name: "),
        ("data.zoom=2", "data.zoom is for data.name=faces"),
        ("data.zoom=0.5", "data.zoom: "),
        ("data.labels=attributes", "data.attributes must name attributes if, and only if"),
        ("data.attributes=[Smiling]", "data.attributes must name attributes if, and only if"),
        ("autoencoder.objective.perceptual=lpips", "autoencoder.objective.lpips_weights must name the folder"),
        ("sampling.kernel=gibbs", "sampling.kernel: "),
        ("sampling.leapfrog_steps=0", "sampling.leapfrog_steps: "),
        ("training=fast", "training: "),
        ("training", "override 'training': expected section.key=value"),
        ("=3", "override '=3': expected section.key=value"),
        ("training.batch_size=[1", "'[1' is not a YAML value"),
        ("seed.x=1", "'seed' is a value, not a section"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(config_file: Path, override: str, expected: str) -> None:
    overrides = ["seed=1", override]
    assert expected in mistake(config_file, *overrides)


def test_fourier_features_of_grids_are_refused_without_an_initializer_too(config_file: Path) -> None:
    assert "go with space: point only" in mistake(config_file, "initializer=null", "energy.fourier_features=8")


def test_there_must_be_something_that_samples(config_file: Path) -> None:
    assert load_config(config_file, ["sampling.steps=0"]).sampling.steps == 0
    message = mistake(config_file, "sampling.steps=0", "initializer=null")
    assert message.endswith("sampling.steps=0 leaves the initializer alone, but initializer is null")


def test_without_classes_there_are_none_to_tell_apart(config_file: Path) -> None:
    assert load_config(config_file, ["training.classification_weight=1", "data.labels=class"])
    message = mistake(config_file, "training.classification_weight=1", "data.labels=none")
    assert message.endswith("training.classification_weight tells classes apart, but data.labels is none")


@pytest.mark.parametrize("key", ["space", "data"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    values = tiny_values()
    del values[key]
    path = write_config(tmp_path / "run.yaml", values)
    assert mistake(path) == mistake(path, "seed=1") == f"{path}: missing key '{key}'"


def test_several_mistakes_make_a_line_each(config_file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_file, ["training.a=1", "energy.b=2"])
    first, second = str(error.value).splitlines()
    assert first.startswith("override 'energy.b=2': unknown key 'energy.b'; expected one of channels, ")
    assert second.startswith("override 'training.a=1': unknown key 'training.a'; expected one of num_steps, ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.imge_size=3", "unknown key 'data.imge_size'; did you mean 'data.image_size'?"),
        ("trainng.num_steps=3", "unknown key 'trainng'; did you mean 'training'?"),
        ("num_steps=3", "unknown key 'num_steps'; did you mean 'training.num_steps'?"),
        ("training={num_step: 3}", "unknown key 'training.num_step'; did you mean 'training.num_steps'?"),
        ("training.optimizer=sgd", "training.optimizer: Input should be 'adam' or 'muon' (given: 'sgd')"),
        ("sampling.steps=x", "(given: 'x'); or sampling.steps: Input should be 'auto' (given: 'x')"),
        ("data.attributes=[1]", "data.attributes.0: Input should be a valid string (given: 1)"),
        ("data.crop=178", "data: data.crop is for data.name=celeba"),
        ("energy.multipliers=[1,1,1,1,1,1]", "energy.multipliers: 6 resolutions need a grid 32 wide"),
    ],
)
def test_a_mistake_in_an_override_names_it_as_it_was_typed(config_file: Path, override: str, says: str) -> None:
    message = mistake(config_file, "seed=1", override)
    assert message.startswith(f"override '{override}': ")
    assert says in message


def test_overrides_that_contradict_the_file_are_named_beside_it(config_file: Path) -> None:
    expected = f"{config_file} with override 'data.image_size=9': initializer.multipliers: 2 resolutions need"
    assert mistake(config_file, "data.image_size=9").startswith(expected)


def test_a_mistake_in_the_file_names_the_file_whatever_is_overridden(config_file: Path) -> None:
    write_config(config_file, tiny_values(training={"num_step": 3}))
    assert mistake(config_file, "training.ema=0.5", "seed=1").startswith(
        f"{config_file}: unknown key 'training.num_step'; did you mean 'training.num_steps'?"
    )


def test_bases_that_come_back_to_themselves_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "a.yaml", {"base": "b.yaml"})
    write_config(tmp_path / "b.yaml", {"base": "a.yaml"})
    assert "'base' files comes back to itself" in mistake(tmp_path / "a.yaml")


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    path = write_config(tmp_path / "a.yaml", {"base": "nowhere.yaml"})
    assert mistake(path) == f"{tmp_path / 'nowhere.yaml'}: no such config file"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1, 2]", "expected sections"),
        (b"", "expected sections"),
        (b"data: {name: [", "not a readable YAML file"),
        (b"\xff\xfe\x00", "not a readable YAML file"),
        (b"data: !!python/object:os.system {}", "not a readable YAML file"),
    ],
)
def test_files_that_hold_no_config_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = mistake(path)
    assert message.startswith(str(path))
    assert expected in message


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    assert mistake(tmp_path).startswith(f"{tmp_path}: not a readable YAML file")


def test_a_config_does_not_change_after_it_was_read() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match="frozen"):
        config.training.batch_size = 3


def test_the_schema_reads_json_as_well(config_file: Path) -> None:
    assert yaml.safe_load(config_file.read_text()) == json.loads(config_file.read_text())
    assert isinstance(load_config(config_file), Config)


def test_a_path_may_begin_with_the_home_folder(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(config_file, ["data.path=~/pics", "data.prepared=~/prep", "autoencoder.run=~/run"])
    assert (config.data.path, config.data.prepared) == (tmp_path / "pics", tmp_path / "prep")
    assert config.autoencoder is not None
    assert config.autoencoder.run == tmp_path / "run"
    write_config(tmp_path / "over.yaml", {"base": f"~/{config_file.name}"})
    assert load_config(tmp_path / "over.yaml") == load_config(config_file)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file:///pics", "found a URL"),
        ("'C:\\Users\\me'", "found one of Windows"),
        ("D:/pics", "found one of Windows"),
        ("''", "expected a path, found nothing"),
        ("~nobody-at-all/pics", "to be a home folder"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused(config_file: Path, path: str, expected: str) -> None:
    message = mistake(config_file, f"data.path={path}")
    assert "data.path: expected" in message
    assert expected in message


def test_prepared_images_may_lie_elsewhere(config_file: Path) -> None:
    overrides = ["data.name=celeba", "data.labels=none", "data.image_size=64", "data.channels=3"]
    assert "data.path is required" in mistake(config_file, *overrides, "data.prepared=data/celeba")
    config = load_config(config_file, [*overrides, "data.prepared=s3://sets/celeba/", "data.cache_gib=10"])
    assert (config.data.prepared, config.data.path) == ("s3://sets/celeba", None)
    assert parse_config(yaml.safe_load(dump_config(config)), source="again") == config
    assert "data.cache_gib is for data.prepared elsewhere" in mistake(config_file, "data.cache_gib=10")


@pytest.mark.parametrize("place", ["https://someone:secret@a.b/c", "https://a.b/c?X-Amz-Signature=secret"])
def test_a_place_with_a_secret_is_refused_and_not_shown(config_file: Path, place: str) -> None:
    message = mistake(config_file, f"data.prepared={place}")
    assert "expected" in message
    assert "secret" not in message


@pytest.mark.parametrize("colour", ["nocolour", "'#12'", "'#12345678'"])
def test_a_background_is_a_colour(config_file: Path, colour: str) -> None:
    assert load_config(config_file, ["data.background=black"]).data.background == "#000000"
    assert "data.background: expected a colour" in mistake(config_file, f"data.background={colour}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["energy.multipliers=[1,1,1,1,1]"],
            "energy.multipliers: 5 resolutions need a grid 16 wide at least, but it is 8",
        ),
        (["initializer.multipliers=[1,1,1,1,1]"], "initializer.multipliers: 5 resolutions need a grid divisible by 16"),
        (["energy.multipliers=[]"], "energy.multipliers: "),
        (["energy.multipliers=[0]"], "energy.multipliers.0: "),
        (["initializer.multipliers=[-1]"], "initializer.multipliers.0: "),
        (["training.batch_size=100000000"], "training.batch_size: Input should be less than or equal to 1048576"),
        (
            ["data.image_size=1024", "training.batch_size=65536"],
            "training.batch_size=65536: images of 1,048,576 numbers",
        ),
        (["energy.num_blocks=1000000"], "energy.num_blocks: "),
        (["energy.channels=1000000"], "energy.channels: "),
        (["initializer.channels=1000000"], "initializer.channels: "),
        (["schedule.num_levels=1000000000"], "schedule.num_levels: "),
        (["schedule.logsnr_max=1000"], "schedule.logsnr_max: "),
        (
            ["space=latent", "autoencoder.architecture.multipliers=[1,1,1,1,1]"],
            "data.image_size=8 must be a multiple of 16, by which autoencoder.architecture shrinks the image",
        ),
        (
            ["space=latent", "autoencoder.architecture.multipliers=[1,1,1]", "energy.multipliers=[1,1,1]"],
            "energy.multipliers: 3 resolutions need a grid 4 wide at least, but it is 2 wide",
        ),
        (["autoencoder.architecture.num_blocks=1000000"], "autoencoder.architecture.num_blocks: "),
        (["autoencoder.training={num_steps: 1, batch_size: 100000000}"], "autoencoder.training.batch_size: "),
    ],
)
def test_networks_and_batches_that_cannot_be_are_refused_by_arithmetic(
    config_file: Path, overrides: list[str], message: str
) -> None:
    assert message in mistake(config_file, *overrides)


def test_the_sides_of_another_runs_latents_are_not_guessed(config_file: Path) -> None:
    overrides = ["space=latent", "autoencoder.run=elsewhere", "energy.multipliers=[1,1,1,1,1]"]
    assert load_config(config_file, overrides).space == "latent"


def test_a_mistake_does_not_print_what_a_file_repeats_without_end(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    laughs = "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    path.write_text("space: pixel\ndata: {name: digits}\nseed:\n  - &a0 [x]\n" + laughs)
    assert len(mistake(path)) < 300
    path.write_text(f"space: pixel\ndata: {{name: digits}}\nseed: {'x' * 100_000}\n")
    assert len(mistake(path)) < 300
    path.write_text(f"space: pixel\ndata: {{name: digits}}\nseed: {[1] * 10_000}\n")
    assert "(given: list of 10000)" in mistake(path)


@pytest.mark.parametrize("value", ["!!int ''", "!!timestamp x", "[[1"])
def test_yaml_that_is_not_plain_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: {value}\n")
    assert "run.yaml: not a readable YAML file" in mistake(path)


def test_of_many_mistakes_the_first_are_told_and_the_others_counted(config_file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_file, [f"training.wrong_{number}=1" for number in range(7)])
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"{config_file}: and 3 mistakes more"
