"""Filling in: what is known comes back bit for bit, what is hidden is never looked at, every fill has its own seed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import run as door
from cdrl.runs.run import RunError
from cdrl.sampling.settings import effective, with_defaults
from pipelines import CDRLPipeline, detect
from pipelines.inpainting.fill import Averaged, Hidden, Observation, fill
from pipelines.inpainting.masks import box, irregular
from pipelines.inpainting.study import Filling, HiddenPart, distances, filled_in, measure_inpainting, run_inpainting
from tests.helpers import save_tiny_run, tiny_config

# Strokes leave latent cells of 2x2 pixels known.
HIDDEN = Hidden(box("right", 8, 8) & irregular(1, 8, 8) | box("6,6,2,2", 8, 8))
OBSERVATIONS: dict[str, Observation] = {"hidden": HIDDEN, "averaged": Averaged(4)}


def eight_bits(seed: int, count: int = 3) -> Tensor:
    """Any image, uint8 [count, 1, 8, 8], with every value of a byte in it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)


GIVEN = eight_bits(0) / 127.5 - 1


@pytest.mark.parametrize("kernel", ["langevin", "mala"])
@pytest.mark.parametrize("by", ["reset", "likelihood"])
def test_known_pixels_come_back_in_the_same_8_bits(pipeline: CDRLPipeline, by: str, kernel: str) -> None:
    given = torch.cat([torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), eight_bits(0, 2)])
    filled = fill(pipeline, given / 127.5 - 1, HIDDEN, by=by, steps=1, kernel=kernel, label=3)
    for image, original in zip(filled.images, given[:, 0].numpy(), strict=True):
        pixels = np.asarray(image)
        assert (pixels[~HIDDEN.mask] == original[~HIDDEN.mask]).all()
        assert (pixels[HIDDEN.mask] != original[HIDDEN.mask]).any()


def test_means_of_blocks_stay_what_they_were(pipeline: CDRLPipeline) -> None:
    def means(images: Tensor) -> Tensor:
        return images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-1, -2))

    images = fill(pipeline, GIVEN, Averaged(4), by="likelihood", steps=2).tensors
    torch.testing.assert_close(means(images), means(GIVEN), rtol=0, atol=1e-5)
    assert images.abs().max() <= 1 + 1e-6
    # Where there is room the contrast stays; where there is little it shrinks to it.
    drawn = torch.tensor([0.5, -0.5]).repeat(8).view(1, 1, 4, 4)
    for mean, contrast in ((0.25, 0.5), (-0.8, 0.2)):
        completed = Averaged(4).completed(drawn, torch.full((1, 1, 4, 4), mean))
        torch.testing.assert_close(completed - mean, drawn * contrast / 0.5)


@pytest.mark.parametrize("name", ["hidden", "averaged"])
@pytest.mark.parametrize("by", ["reset", "likelihood"])
def test_what_is_hidden_changes_nothing(run: Path, pipeline: CDRLPipeline, name: str, by: str) -> None:
    if (run.name.startswith("latent"), name, by) == (True, "averaged", "reset"):
        with pytest.raises(ValueError, match="use likelihood"):
            fill(pipeline, GIVEN, OBSERVATIONS[name], by=by)
        return
    observation = OBSERVATIONS[name]
    other, given = (eight_bits(5) / 127.5 - 1) / 3, GIVEN / 3
    other = other - observation.seen(other) + observation.seen(given)
    assert (other - given).abs().max() > 0.1
    fills = [fill(pipeline, images, observation, by=by, steps=2).tensors for images in (given, other)]
    torch.testing.assert_close(*fills, rtol=0, atol=1e-4)


@pytest.mark.parametrize("by", ["reset", "likelihood"])
def test_a_fill_depends_on_its_own_seed_and_class_alone(pipeline: CDRLPipeline, by: str) -> None:
    options = {"by": by, "steps": 2, "guidance": 0.5}
    whole = fill(pipeline, GIVEN, HIDDEN, seeds=[4, 1, 9], label=[2, 7, 5], **options).grids
    apart = fill(pipeline, GIVEN, HIDDEN, seeds=[4, 1, 9], label=[2, 7, 5], batch_size=2, **options).grids
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-4)
    alone = fill(pipeline, GIVEN[1:2], HIDDEN, seeds=[1], label=7, **options).grids
    torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-4)
    five = fill(pipeline, GIVEN[:1].expand(5, -1, -1, -1), HIDDEN, label=2, **options).tensors
    assert all((one - other).abs().max() > 0.05 for one, other in pairwise(five))


def test_every_level_and_step_is_seen_and_kept_and_the_energy_is_the_models(pipeline: CDRLPipeline) -> None:
    seen: list[tuple[int, int, int]] = []

    def callback(*, level: int, step: int, y: Tensor) -> None:
        seen.append((level, step, len(y)))

    options = {"steps": 2, "passes": 2, "batch_size": 2, "label": [2, 7, 5], "seeds": [4, 1, 9]}
    filled = fill(pipeline, GIVEN, HIDDEN, keep_chains=True, callback=callback, **options)
    moves = [(level, step) for level in (1, 0) for _ in range(2) for step in (0, 1, 2)]
    assert seen == [(*move, count) for count in (2, 1) for move in moves]
    assert [(move.level, move.step) for move in filled.chains] == moves
    plain = fill(pipeline, GIVEN, HIDDEN, denoise=0.0, **options)
    assert plain.chains == ()
    schedule = pipeline.model.schedule
    last = filled.chains[-1].y / schedule.alpha_y[0] / schedule.alpha_bar[0]
    torch.testing.assert_close(plain.grids, last)
    expected = [
        -pipeline.log_density(grid[None], label=c).item() for grid, c in zip(filled.grids, [2, 7, 5], strict=True)
    ]
    assert filled.energies.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_the_decoders_error_at_the_seam_is_taken_off_and_fades() -> None:
    hidden = Hidden(box("right", 64, 64))
    given = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = given - 0.5
    completed = hidden.completed(hidden.without_seam(given + 0.3, given), given)
    assert torch.equal(completed[..., :32], given[..., :32])
    left = (completed - given)[..., 32:].mean(dim=(0, 1, 2))
    assert left[0] < 0.1
    assert (left[1:] >= left[:-1] - 1e-6).all()
    assert (left[8:] - 0.3).abs().max() < 1e-5


def test_distances_are_root_mean_squares_of_the_hidden_pixels() -> None:
    truth = torch.zeros(2, 1, 8, 8)
    fills = torch.zeros(2, 3, 1, 8, 8)
    mask = box("center", 8, 8)
    for fill_, value in enumerate((0.1, 0.2, 0.4)):
        fills[:, fill_, :, mask] = value
    figures = distances(fills, truth, Hidden(mask))
    assert figures["error_of_the_known"] == 0
    assert figures["distance_to_truth"] == pytest.approx(((0.01 + 0.04 + 0.16) / 3) ** 0.5)
    assert figures["closest_to_truth"] == pytest.approx(0.1)
    assert figures["diversity"] == pytest.approx(((0.01 + 0.04 + 0.09) / 3) ** 0.5)
    fills[0, 1, 0, 0, 0] = 3.2 / 127.5
    assert distances(fills, truth, Hidden(mask))["error_of_the_known"] == 3
    assert distances(fills[:, :1], truth, Hidden(mask))["diversity"] is None


def written(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(door.app, ["inpaint", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_one_image_gives_files_a_picture_and_figures(run: Path, pipeline: CDRLPipeline, tmp_path: Path) -> None:
    pixels = eight_bits(1, 1)[0, 0].numpy()
    image = written(tmp_path / "digit.png", pixels)
    mask = written(tmp_path / "mask.png", HIDDEN.mask.numpy().astype(np.uint8) * 255)
    code, output, _ = call(run, image, "--mask", mask, "--fills", "2", "--seed", "7", "--steps", "2", "--label", "4")
    assert code == 0
    folder = run / "inpainted" / "digit"
    assert output.strip() == f"pictures and figures in {folder}"
    given = torch.from_numpy(pixels)[None, None] / 127.5 - 1
    expected = fill(pipeline, given.expand(2, -1, -1, -1), HIDDEN, seeds=[7, 8], label=4, steps=2)
    for index, image_ in enumerate(expected.images):
        found = np.asarray(Image.open(folder / f"{index:06d}.png"), int)
        assert np.abs(found - np.asarray(image_, int)).max() <= 1
        assert (found[~HIDDEN.mask] == pixels[~HIDDEN.mask]).all()
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["error_of_the_known"] == 0
    assert figures["energies"] == pytest.approx(expected.energies.tolist(), rel=1e-3, abs=1e-2)
    assert Image.open(folder / "grid.png").size == (4 * 66 + 2, 66 + 2)


def test_images_of_other_sizes_are_prepared_and_told(run: Path, tmp_path: Path) -> None:
    large = written(tmp_path / "large.png", np.full((16, 24, 3), 90, np.uint8))
    _, notes = run_inpainting(run, large, HiddenPart(box="left"), Filling(fills=1), steps=1)
    assert notes == [f"{large}: 24x16, 3 channels, is prepared as training images are: 8x8, 1 channels"]
    small = written(tmp_path / "small.png", np.full((4, 4), 90, np.uint8))
    blocks, filling = HiddenPart(observe="downsample:2"), Filling(fills=1, by="likelihood")
    folder, notes = run_inpainting(run, small, blocks, filling, steps=1)
    assert notes == [f"{small}: taken for the small image itself"]
    assert json.loads((folder / "figures.json").read_text())["error_of_the_known"] <= 1


def test_all_that_changes_a_fill_is_recorded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the sampler's options that are given, and of all others what stands in for them."""
    pixels = run.name.startswith("pixel")
    image = written(tmp_path / "digit.png", eight_bits(1, 1)[0, 0].numpy())
    shared = ["--box", "right", "--seed", "3", "--label", "4", "--guidance", "0.5", "--passes", "3"]
    code, _, _ = call(run, image, *shared, "--fills", "1", "--temperature", "0.6", "--kernel", "mala")
    assert code == 0
    figures = json.loads((run / "inpainted" / "digit" / "figures.json").read_text())
    by = "reset" if pixels else "likelihood"
    filling = {"fills": 1, "seed": 3, "label": 4, "guidance": 0.5, "by": by, "passes": 3}
    # By likelihood the last denoising is Tweedie's, not the run's own.
    own = effective(with_defaults(tiny_config().sampling, 2))
    sampling = {**own, "temperature": 0.6, "kernel": "mala", "denoise": 2.0 if pixels else 1.0}
    assert (figures["image"], figures["gap"]) == (str(image), {"box": "right"})
    assert (figures["filling"], figures["sampling"]) == (filling, sampling)
    # Its judge is trained for half a minute.
    monkeypatch.setattr("pipelines.inpainting.study.plausibility", lambda *arguments: {})
    folder, measured = measure_inpainting(
        run, 4, HiddenPart(irregular=2), Filling(fills=2, by="reset"), temperature=0.6
    )
    assert folder == run / "inpainted" / "test_irregular_2"
    assert json.loads((folder / "figures.json").read_text()) == {**measured, "files": ["grid.png"]}
    assert (measured["gap"], measured["filling"]["by"]) == ({"irregular": "2"}, "reset")
    assert measured["sampling"] == {**own, "temperature": 0.6}


def test_held_out_images_are_filled_under_their_own_class(pipeline: CDRLPipeline) -> None:
    several = filled_in(pipeline, GIVEN, HIDDEN, Filling(fills=2, seed=5), torch.tensor([2, 7, 5]), steps=1)
    alone = fill(pipeline, GIVEN[1:2], HIDDEN, seeds=[8], label=7, steps=1)
    torch.testing.assert_close(several.tensors[3], alone.tensors[0], rtol=0, atol=1e-4)
    other = filled_in(pipeline, GIVEN, HIDDEN, Filling(fills=2, seed=5, label=-1), torch.tensor([2, 7, 5]), steps=1)
    assert torch.equal(other.tensors, filled_in(pipeline, GIVEN, HIDDEN, Filling(fills=2, seed=5), steps=1).tensors)
    assert not torch.equal(other.tensors, several.tensors)


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    image = written(tmp_path / "digit.png", eight_bits(1, 1)[0, 0].numpy())
    (tmp_path / "text.png").write_text("no picture")
    empty = written(tmp_path / "empty.png", np.zeros((8, 8), np.uint8))
    for arguments, message in (
        ((tmp_path / "nowhere", image, "--box", "left"), "nowhere: no trained model there"),
        ((run, image), "expected one of --mask, --box, --irregular and --observe"),
        ((run, image, "--box", "left", "--irregular", "1"), "expected one of --mask"),
        ((run, "--box", "left"), "expected an IMAGE or --test N"),
        ((run, "--test", "2", "--mask", empty), "mask: --test takes --box, --irregular or --observe"),
        ((run, "--test", "1000", "--box", "left"), "test: expected 2 … 500 held-out images, found 1000"),
        ((run, image, "--mask", empty), "empty.png: hides nothing of the image"),
        ((run, tmp_path / "text.png", "--box", "left"), "text.png: expected a whole picture"),
        ((run, tmp_path / "none.png", "--box", "left"), "none.png: cannot be read"),
        ((run, image, "--observe", "blur:3"), "observe: expected downsample:FACTOR, found 'blur:3'"),
        ((run, image, "--observe", "downsample:3"), "observe: the factor must divide 8"),
        ((run, image, "--box", "left", "--by", "magic"), "by: expected reset or likelihood, found 'magic'"),
        ((run, image, "--box", "left", "--label", "10"), "class ids are -1 … 9"),
        ((run, image, "--box", "left", "--guidance", "1"), "guidance: needs a class"),
    ):
        code, output, error = call(*arguments)
        assert (code, output) == (2, ""), (arguments, output)
        lines = error.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert message in lines[0]


def test_points_are_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path, config=tiny_config(space="point", data={"name": "checkerboard", "labels": "none"}))
    with pytest.raises(RunError, match="this is a run of 2-D points"):
        run_inpainting(tmp_path, tmp_path / "any.png", HiddenPart(box="left"), Filling())


PASSES = "passes: expected a whole number of at least 1, found "


@pytest.mark.parametrize(
    ("values", "fault", "message"),
    [
        *(
            ({"observation": each}, TypeError, r"observation: expected Hidden\(mask\) or Averaged\(factor\), found ")
            for each in (HIDDEN.mask, Hidden, None, "center")
        ),
        ({"observation": Hidden(torch.eye(16) > 0)}, ValueError, r"mask: expected \[8, 8\], .* found \[16, 16\]"),
        ({"observation": Hidden(HIDDEN.mask[-1:])}, ValueError, r"mask: expected \[8, 8\], .* found \[1, 8\]"),
        ({"observation": Averaged(3)}, ValueError, "factor: expected one that divides images of 8x8 exactly, found 3"),
        *(({"passes": each}, TypeError, PASSES) for each in (True, "2")),
        *(({"passes": each}, ValueError, PASSES) for each in (0, 2.0)),
        ({"keep_chains": 1}, TypeError, "keep_chains: expected True or False, found 1"),
        ({"by": ["reset"]}, ValueError, r"by: expected reset or likelihood, found \['reset'\]"),
        ({"callback": 3, "keep_chains": True}, TypeError, "callback: expected a function of level, step and y"),
        ({"seeds": {1, 2, 3}}, TypeError, "seeds: expected a list, such as "),
        ({"given": []}, ValueError, "images: expected at least one, found none"),
        ({"given": None}, TypeError, "images: expected PIL images or a tensor, found None"),
        ({"pipeline": 3}, TypeError, "pipeline: expected a CDRLPipeline, found 3"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(
    pipeline: CDRLPipeline, values: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        fill(**{"pipeline": pipeline, "given": GIVEN, "observation": HIDDEN, **values})


@pytest.mark.parametrize("factor", [True, "2", None, 2.0, 1])
def test_a_factor_that_cannot_be_is_refused(factor: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^factor: expected a whole number of at least 2, found "):
        Averaged(factor)


def test_what_was_filled_in_can_be_given_back(pipeline: CDRLPipeline) -> None:
    filled = fill(pipeline, GIVEN, HIDDEN, label=3, steps=1)
    assert len(filled) == len(GIVEN)
    assert torch.equal(pipeline.log_density(filled, label=3), -filled.energies)
    options = {"by": "likelihood", "steps": 1}
    again = fill(pipeline, filled, Averaged(2), **options)
    assert torch.equal(again.tensors, fill(pipeline, filled.tensors, Averaged(2), **options).tensors)
    outside = detect(pipeline, images={"filled": filled, "tensors": filled.tensors}, num_images=20).outside
    assert torch.equal(outside["filled"], outside["tensors"])
