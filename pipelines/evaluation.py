"""Numbers whose names say what was compared: Fréchet distances and readings of a judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric

from autoencoder.lite0 import Lite0
from cdrl.data import load_images, num_classes
from cdrl.runs import RunError, write_json
from pipelines.base import CDRLPipeline
from pipelines.generation import default_device, labels_in_turn
from pipelines.judge import train_class_judge

JUDGE_STEPS = 800


def frechet_distance(features1: Tensor, features2: Tensor) -> float:
    """Fréchet distance of two sets of features, [N1, D] and [N2, D], by torch-fidelity.

    Gaussians are fitted to both: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al., 2017).
    """
    statistics = [
        {"mu": f.mean(axis=0), "sigma": np.cov(f, rowvar=False)}
        for f in (features.double().cpu().numpy() for features in (features1, features2))
    ]
    (distance,) = fid_statistics_to_metric(*statistics, verbose=False).values()
    return float(distance)


@torch.no_grad()
def lite0_features(images: Tensor, network: Lite0) -> Tensor:
    """EfficientNet-Lite0's pooled stage-5 features of images [N, 3, H, W] in [-1, 1], rounded to 8 bits: [N, 112].

    Distances on them are called ``fd_lite0``; they are not FID.
    """
    rounded = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return torch.cat([network.pooled_features(part) for part in rounded.split(128)])


def judge_run(run: Path, num_images: int, seed: int) -> dict[str, float]:
    """What a judge trained on the run's real images reads off samples; also written to RUN/judge.json.

    The classes come in turn. ``accuracy`` is the share read as the class asked for, ``accepted`` the share not read
    as junk, ``fd_judge_*_test`` the Fréchet distance on the judge's features to the held-out images.

    Raises:
        RunError: the run has no classes.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    data = pipeline.config.data
    if data.labels != "class" or pipeline.config.space == "point":
        raise RunError(f"{run}: the judge reads classes, but this run has data.labels={data.labels}")
    train, test = load_images(data, "train"), load_images(data, "test")
    assert train.labels is not None
    assert test.labels is not None
    judge = train_class_judge(
        train.images / 127.5 - 1, train.labels, num_classes(data, train), steps=JUDGE_STEPS, seed=0
    )
    real = test.images / 127.5 - 1
    read, accepted = judge.read(real)
    figures = {
        "accuracy_real_test": (read == test.labels).float().mean().item(),
        "accepted_real_test": accepted.float().mean().item(),
        "fd_judge_train_test": frechet_distance(judge.features(train.images / 127.5 - 1), judge.features(real)),
    }
    seeds = range(seed, seed + num_images)
    labels = labels_in_turn(pipeline, seeds)
    alone = {} if pipeline.model.initializer is None else {"initializer": 0}
    for name, steps in {"samples": None, **alone}.items():
        images = pipeline(num_images, seeds=seeds, label=labels, steps=steps, progress=True).tensors.cpu()
        read, accepted = judge.read(images)
        figures[f"accuracy_{name}"] = (read == torch.tensor(labels)).float().mean().item()
        figures[f"accepted_{name}"] = accepted.float().mean().item()
        figures[f"fd_judge_{name}_test"] = frechet_distance(judge.features(images), judge.features(real))
    write_json(run / "judge.json", {**figures, "num_images": num_images, "seed": seed})
    return figures
