"""What run.py can be told: a verb each, arguments in, one call out."""

from pipelines.verbs import data, demo, generation, importing, proposing, settings, sharing, studies, training
from pipelines.verbs.common import app

__all__ = ["app", "data", "demo", "generation", "importing", "proposing", "settings", "sharing", "studies", "training"]
