"""Comparison of a run of 2-D points with the checkerboard's exact density at every noise level.

Levels are compared in the space of their energies, y_t = alpha_y_t x_t (the highest level has alpha_y = 1).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cdrl.data import NUM_SQUARES, checkerboard_density, inside_squares, sample_checkerboard, square_index
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.annealing import Bracket, Gaussian, log_normalizer
from cdrl.sampling.noise import derive_seed
from cdrl.schedule import NoiseSchedule
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.generation import default_device
from pipelines.studies.plane import Grid, coloured, kl_divergence, total_variation

BINS = Grid(1.25, 20)  # a bin is a quarter of a square wide, so that bins end where squares end
CELLS = 400  # a side of the grids on which densities are normalized
CHAINS, TEMPERATURES = 512, 300
_PER_BIN = 16  # cells a side, over which a bin's true probability is summed
_BATCH = 4096

PANEL, PANEL_BINS = 168, 56  # pixels and histogram bins a side
_MARGIN, _LEFT, _TOP, _GAP = 12, 96, 48, 8


def density_report(run: Path, num_samples: int, seed: int) -> dict[str, Any]:
    """Compare a run with the exact density, see `compare`; writes RUN/density.json and RUN/density.png.

    Raises:
        RunError: the run is not one of 2-D points.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    space = pipeline.config.space
    if space != "point":
        raise RunError(f"{run}: has space: {space}; densities are compared with the truth for 2-D points only")
    with one_calls_output(run, "density.json", alone=False) as output:
        report, picture = compare(pipeline, num_samples, seed)
        save_picture(output.folder / "density.png", picture)
        output.record = report
    return report


def compare(pipeline: CDRLPipeline, num_samples: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Figures of a model of points, and the `density_picture` of it.

    Returns, beside ``num_samples`` and ``seed``:
        inside: share of samples inside the true squares, drawn as the run's settings say, which may denoise them;
            ``inside_not_denoised``: the same samples before that last step, with level 0's noise upon them.
        inside_initializer: share of points that the initializer alone draws, with no use of the energy, neither
            refined nor denoised: to be compared with ``inside_not_denoised`` for what refining does;
            ``inside_initializer_denoised``: the same points after the run's denoising step, which uses the energy: to
            be compared with ``inside``. Both are None for a run without an initializer.
        kl: KL(true || fitted) in nats a level, 0 … T-1, both normalized on a grid as wide as a chain may reach.
        tv: total variation between the shares of samples and the true probabilities over 20 x 20 bins of side 0.125
            on [-1.25, 1.25]^2 and one for all beyond.
        tv_floor: the same for as many points drawn from that truth.
        tv_noise: standard deviation of the noise that the truth of ``tv`` carries: level 0's for samples which are
            not denoised, 0 for samples which are. What the last Langevin step adds counts as the sampler's fault.
        squares: share of each square among all samples over its true share, 1/8; row by row from below.
        log_z: level 0's log normalizer by annealed importance sampling, forward (``lower``) and back from exact
            samples (``upper``), with standard errors and effective sample sizes; and by the sum over the ``grid``.
    """
    schedule = pipeline.model.schedule
    levels, seeds = range(schedule.num_levels), range(seed, seed + num_samples)
    generator = torch.Generator().manual_seed(derive_seed("density", seed))
    grids = [level_grid(schedule, level) for level in levels]
    fitted = [level_values(pipeline, level, grid) for level, grid in enumerate(grids)]
    true = [true_density(schedule, level, grid.points()).log() for level, grid in enumerate(grids)]
    log_z = [grid.log_normalizer(values) for values, grid in zip(fitted, grids, strict=True)]
    bracket = bracket_log_z(pipeline, grids[0], fitted[0], generator)
    chains, samples = sample_levels(pipeline, seeds)
    points = sample_checkerboard(num_samples, generator)
    epsilon = torch.randn(points.shape, generator=generator)
    noise = 0.0 if pipeline.config.sampling.denoise else float(schedule.sigma_bar[0] / schedule.alpha_bar[0])
    truth = true_histogram(noise)
    report = {
        "num_samples": num_samples,
        "seed": seed,
        "inside": share_inside(samples),
        "inside_not_denoised": share_inside(chains[0] / (schedule.alpha_y[0] * schedule.alpha_bar[0])),
        "inside_initializer": inside_initializer(pipeline, seeds, denoise=0.0),
        "inside_initializer_denoised": inside_initializer(pipeline, seeds, pipeline.config.sampling.denoise),
        "kl": [kl_divergence(log_p, log_q) for log_p, log_q in zip(true, fitted, strict=True)],
        "tv": total_variation(BINS.histogram(samples), truth),
        "tv_floor": total_variation(BINS.histogram(points + noise * epsilon), truth),
        "tv_noise": noise,
        "squares": square_shares(samples).tolist(),
        "log_z": {"level": 0, **dataclasses.asdict(bracket), "grid": log_z[0]},
    }
    noised = [true_points(schedule, level, points, epsilon) for level in levels]
    return report, density_picture(pipeline, log_z, noised, chains)


def density_table(report: dict[str, Any]) -> str:
    """Format the figures of `compare` for a terminal."""
    log_z = report["log_z"]
    ends = [f"{log_z[end]['log_z']:.3f} ± {log_z[end]['standard_error']:.3f}" for end in ("lower", "upper")]
    lines = {"inside the squares": f"{report['inside']:.3f} (before denoising {report['inside_not_denoised']:.3f})"}
    if report["inside_initializer"] is not None:
        denoised = f"denoised by the energy {report['inside_initializer_denoised']:.3f}"
        lines["initializer alone"] = f"{report['inside_initializer']:.3f} ({denoised})"
    lines |= {
        "KL(true || fitted)": " ".join(f"{value:.3f}" for value in report["kl"]) + " (levels 0, 1, …)",
        "total variation": f"{report['tv']:.3f} (as many true points {report['tv_floor']:.3f})",
        "squares over 1/8": " ".join(f"{value:.3f}" for value in report["squares"]),
        "log Z of level 0": f"{' to '.join(ends)} (grid {log_z['grid']:.3f})",
    }
    return "\n".join(f"{name:<20}{value}" for name, value in lines.items())


def level_grid(schedule: NoiseSchedule, level: int) -> Grid:
    """Grid for y_t that covers all chains: the board at the scale of x_{t+1} and 4.5 standard deviations of noise."""
    return Grid(float(schedule.alpha_bar[level + 1] + 4.5 * schedule.sigma_bar[level + 1]), CELLS)


def true_density(schedule: NoiseSchedule, level: int, y: Tensor) -> Tensor:
    """Exact density of y_t at points [N, 2]: float64 [N]."""
    scale, noise = (schedule.alpha_y[level] * table[level] for table in (schedule.alpha_bar, schedule.sigma_bar))
    return checkerboard_density(y, float(scale), float(noise))


def true_points(schedule: NoiseSchedule, level: int, points: Tensor, epsilon: Tensor) -> Tensor:
    """Noise points of the checkerboard by normal draws, [N, 2] each: y_t [N, 2]."""
    return schedule.alpha_y[level] * (schedule.alpha_bar[level] * points + schedule.sigma_bar[level] * epsilon)


@torch.no_grad()
def level_values(pipeline: CDRLPipeline, level: int, grid: Grid) -> Tensor:
    """Unnormalized log density of y_t at the grid's points: float64 [cells^2]."""
    log_density = pipeline.model.conditioned().log_density
    parts = grid.points().float().to(pipeline.device).split(_BATCH)
    return torch.cat([log_density(part, level).double().cpu() for part in parts])


def true_histogram(noise: float) -> Tensor:
    """Probability of each of `BINS` and of all beyond under the checkerboard with Gaussian noise added."""
    grid = Grid(BINS.half, BINS.cells * _PER_BIN)
    mass = checkerboard_density(grid.points(), noise=noise) * grid.side**2
    bins = mass.view(BINS.cells, _PER_BIN, BINS.cells, _PER_BIN).sum(dim=(1, 3)).flatten()
    return torch.cat([bins, (1 - bins.sum()).clamp(min=0)[None]])


def share_inside(points: Tensor) -> float:
    """Share of points [N, 2] that lie in a dark square."""
    return inside_squares(points).double().mean().item()


def inside_initializer(pipeline: CDRLPipeline, seeds: range, denoise: float) -> float | None:
    """Share of the initializer's own samples that lie in a dark square; None where there is no initializer."""
    if pipeline.model.initializer is None:
        return None
    return share_inside(pipeline(len(seeds), seeds=seeds, steps=0, denoise=denoise, batch_size=_BATCH).grids.cpu())


def square_shares(points: Tensor) -> Tensor:
    """Share of points [N, 2] in each dark square, divided by its true share: float64 [8]."""
    square = square_index(points)
    counts = torch.bincount(square[square >= 0], minlength=NUM_SQUARES)
    return counts.double() / len(points) * NUM_SQUARES


def sample_levels(pipeline: CDRLPipeline, seeds: range) -> tuple[list[Tensor], Tensor]:
    """End points of each level's chains, y_t [N, 2] for t = 0 … T-1, and the resulting samples [N, 2]."""
    ends: list[list[Tensor]] = [[] for _ in range(pipeline.model.schedule.num_levels)]

    def keep(*, level: int, step: int, y: Tensor) -> None:
        if step == pipeline.drawing().plan.steps[level]:
            ends[level].append(y.cpu())

    samples = pipeline(len(seeds), seeds=seeds, batch_size=_BATCH, callback=keep, progress=True).grids
    return [torch.cat(parts) for parts in ends], samples.cpu()


def bracket_log_z(pipeline: CDRLPipeline, grid: Grid, values: Tensor, generator: torch.Generator) -> Bracket:
    """Bracket log Z of level 0 by annealed importance sampling; backward chains start at samples drawn on the grid."""
    log_density = pipeline.model.conditioned().log_density
    for_start, samples = grid.draw(values, 2 * CHAINS, generator).to(pipeline.device).chunk(2)
    return log_normalizer(
        lambda y: log_density(y, 0),
        Gaussian.fitted(for_start),
        samples,
        temperatures=TEMPERATURES,
        generator=generator,
    )


def density_picture(pipeline: CDRLPipeline, log_z: list[float], data: list[Tensor], samples: list[Tensor]) -> Tensor:
    """Picture with rows data, fitted density and samples, and the levels as columns (Figure 1): uint8 [3, H, W].

    Each column has one scale: white is 0, the darkest colour at least 1.25 times the peak of the true density.

    Args:
        log_z: of each level.
        data, samples: y_t [N, 2] of each level, shown as histograms.
    """
    schedule = pipeline.model.schedule
    rows = ("data", "fitted\ndensity", "samples")
    width = _LEFT + schedule.num_levels * (PANEL + _GAP) - _GAP + _MARGIN
    picture = Image.new("RGB", (width, _TOP + len(rows) * (PANEL + _GAP) - _GAP + _MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    for row, name in enumerate(rows):
        draw.text((_MARGIN, _TOP + row * (PANEL + _GAP) + PANEL // 2), name, fill="black", font=font, anchor="lm")
    for level in range(schedule.num_levels):
        # The part of the plane that holds the data.
        half = float(schedule.alpha_y[level] * (schedule.alpha_bar[level] + 2.5 * schedule.sigma_bar[level]))
        fine, coarse = Grid(half, PANEL), Grid(half, PANEL_BINS)
        peak = 1.25 * true_density(schedule, level, fine.points()).max()
        densities = (
            coarse.histogram(data[level])[:-1] / coarse.side**2,
            (level_values(pipeline, level, fine) - log_z[level]).exp(),
            coarse.histogram(samples[level])[:-1] / coarse.side**2,
        )
        left = _LEFT + level * (PANEL + _GAP)
        caption = f"level {level}\nnoise {schedule.sigma_bar[level]:.2f}"
        draw.text((left + PANEL // 2, _TOP // 2), caption, fill="black", font=font, anchor="mm", align="center")
        for row, density in enumerate(densities):
            top = _TOP + row * (PANEL + _GAP)
            picture.paste(coloured(density / peak, PANEL), (left, top))
            draw.rectangle((left, top, left + PANEL - 1, top + PANEL - 1), outline=(190, 190, 190))
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, -1, 3).movedim(-1, 0)
