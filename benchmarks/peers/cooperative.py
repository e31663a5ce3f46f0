"""Our three: DRL, CDRL with the paper's settings scaled down, and CDRL by our recipe, all by the project's trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.peers.budget import train_for
from benchmarks.peers.task import Sampler, Task, Trained, count_parameters
from cdrl.config import Config, SamplerSettings, ScheduleConfig
from cdrl.config_files import parse_config
from cdrl.sampling.settings import ChainPlan
from cdrl.training.engine import start
from cdrl.training.trainer import CooperativeTrainer
from pipelines.base import CDRLPipeline
from pipelines.decoding import PixelDecoder
from pipelines.studies.step_budgets import gradients

_PAPER_UPDATES = 400_000
"""The paper's updates, of which its warm-up, its initializer's head start and its average's memory are shares."""
_PAPER_WARMUP, _PAPER_HEAD_START, _PAPER_MEMORY = 10_000, 500, 10_000

IN_FLOAT32 = {"chain_dtype": "float32", "learning_dtype": "float32"}
"""Methods that others published compute as their authors' do."""

Settings = Callable[[Config, int], Config]
"""(recipe, updates) -> the configuration that is trained."""


def ours(recipe: Config, updates: int) -> Config:
    """Our recipe, its learning rates decaying over the updates at hand."""
    return changed(recipe, {"training": {"num_steps": updates}})


def paper(recipe: Config, updates: int) -> Config:
    """The paper's settings on the recipe's networks and batches, what lasts a share of its updates scaled down."""
    share = updates / _PAPER_UPDATES
    return changed(
        recipe,
        {
            "schedule": ScheduleConfig().model_dump(),
            "energy": {"spectral_norm": True, "activation": "leaky_relu", "output_scale": 1.0, "reference": "flat"},
            "initializer": {"dropout": 0.1},
            "training": {
                "num_steps": updates,
                "langevin_steps": 15,
                "optimizer": "adam",
                **IN_FLOAT32,
                "energy_lr": 1e-4,
                "initializer_lr": 1e-5,
                "warmup_steps": round(share * _PAPER_WARMUP),
                "initializer_head_start": round(share * _PAPER_HEAD_START),
                "decay_fraction": 0.0,
                "ema": max(0.0, 1 - 1 / (share * _PAPER_MEMORY)),
                "gradient_clip": 1.0,
                "pairs": "shared_noise",
            },
            "sampling": SamplerSettings().model_dump(),
        },
    )


def drl(recipe: Config, updates: int) -> Config:
    """DRL's chains on the recipe's energy, by Adam at 1e-3: T6, 30 steps from x_{t+1}, no initializer."""
    return changed(
        recipe,
        {
            "schedule": ScheduleConfig(kind="drl").model_dump(),
            "energy": {"spectral_norm": True, "activation": "leaky_relu", "output_scale": 1.0, "reference": "flat"},
            "initializer": None,
            "training": {
                "num_steps": updates,
                "langevin_steps": 30,
                "pairs": "independent_noise",
                "optimizer": "adam",
                **IN_FLOAT32,
                "energy_lr": 1e-3,
            },
            "sampling": SamplerSettings(denoise=0.0).model_dump(),
        },
    )


def changed(config: Config, sections: dict[str, Any]) -> Config:
    """A configuration with some values changed, checked again."""
    values = config.model_dump(mode="json")
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) else section
    return parse_config(values, source="benchmarks.peers")


@dataclass(frozen=True)
class Cooperative:
    """The project's trainer as a `benchmarks.peers.budget.Learner`."""

    trainer: CooperativeTrainer

    def update(self, step: int) -> None:
        """Make update ``step``."""
        self.trainer.update(step)

    def schedules(self) -> list[LambdaLR]:
        """The learning rates of the networks as functions of the updates."""
        return [trainee.engine.lr_scheduler for trainee in self.trainer.trainees.values()]


def train(task: Task, seconds: float, settings: Settings, samplers: dict[str, dict[str, Any]]) -> Trained:
    """Train for CPU seconds.

    Args:
        samplers: options of the pipeline by the name under which samples drawn so are reported.
    """
    world = start()

    @contextmanager
    def learning(updates: int) -> Iterator[Cooperative]:
        config = settings(task.recipe, updates)
        data = task.batches(config.training.batch_size)
        with closing(CooperativeTrainer(config, data, task.num_classes, world)) as trainer:
            yield Cooperative(trainer)

    learner, spent = train_for(seconds, learning)
    trainer = learner.trainer
    pipeline = CDRLPipeline(trainer.averaged, PixelDecoder(), trainer.config, task.class_names)
    told = trainer.config.model_dump(mode="json", include={"schedule", "energy", "initializer", "training", "sampling"})
    return Trained(
        {name: sampler(pipeline, options) for name, options in samplers.items()},
        count_parameters(trainer.averaged),
        (spent,),
        told,
    )


def sampler(pipeline: CDRLPipeline, options: dict[str, Any]) -> Sampler:
    """Sample by Algorithm 2."""
    how = pipeline.drawing(**options)

    def draw(label: Tensor, seed: int) -> Tensor:
        return pipeline(len(label), seed=seed, label=label, batch_size=len(label), **options).grids

    return Sampler(draw, proposals(pipeline, how.plan), gradients(how.plan, how.settings))


def proposals(pipeline: CDRLPipeline, plan: ChainPlan) -> int:
    """Passes through the initializer that an image takes."""
    return 0 if pipeline.model.initializer is None else len(plan.steps) * plan.passes


def train_ours(task: Task, seconds: float) -> Trained:
    """CDRL by our recipe, sampled as the recipe says and in 29 gradients."""
    return train(task, seconds, ours, {"the recipe's own steps": {}, "steps auto": {"steps": "auto"}})


def train_paper(task: Task, seconds: float) -> Trained:
    """CDRL with the paper's settings, sampled with as many steps as trained."""
    return train(task, seconds, paper, {"15 steps a level": {}})


def train_drl(task: Task, seconds: float) -> Trained:
    """DRL, sampled with as many steps as trained."""
    return train(task, seconds, drl, {"30 steps a level": {}})
