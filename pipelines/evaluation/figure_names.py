"""Names of figures, which say what was compared with what: ``fid_50k_train``, ``fd_lite0_3k_test_steps30_w0.7``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.base import CDRLPipeline


def metric_name(metric: str, label: str | None, samples: int, against: str) -> str:
    """Full name of a metric of `compared`, such as ``fid_50k_train`` or ``fd_lite0_3k_test``.

    Args:
        label: label of the features, see `Extractor`.
    """
    of = label or "inception"
    short = {
        "fid": f"fd_{label}" if label else "fid",
        "kid": f"kd_{label}" if label else "kid",
        "precision": f"precision_{of}",
        "recall": f"recall_{of}",
        "inception_score": f"score_{label}" if label else "inception_score",
    }[metric]
    return f"{short}_{in_thousands(samples)}" + ("" if metric == "inception_score" else f"_{against}")


def in_thousands(count: int) -> str:
    """Abbreviate a number of images: 50000 as 50k, 300 as 300."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def from_thousands(count: str) -> int:
    """The number that `in_thousands` has abbreviated."""
    return 1000 * int(count.removesuffix("k")) if count.endswith("k") else int(count)


def sampling_suffix(pipeline: CDRLPipeline, facts: Mapping[str, Any]) -> str:
    """Suffix of a figure's name: the sampler's settings that differ from the run's own, such as ``_steps30_w0.7``.

    ``facts`` hold only the settings that change images.
    """
    own = pipeline.drawing().settings.model_dump()
    words = {
        "steps": "steps{}",
        "step_adjustment": "adjusted{}",
        "temperature": "temperature{}",
        "denoise": "denoise{}",
        "kernel": "{}",
        "leapfrog_steps": "leapfrog{}",
    }
    parts = [word.format(facts[name]) for name, word in words.items() if facts.get(name, own[name]) != own[name]]
    if facts["guidance"]:
        parts.append(f"w{facts['guidance']:g}")
    if isinstance(facts["label"], int):
        parts.append(f"class{facts['label']}")
    if facts["first_seed"]:
        parts.append(f"seed{facts['first_seed']}")
    if facts["model"] == "best":
        parts.append("best")
    return "".join(f"_{part}" for part in parts)
