"""What a trained model is used for."""

from pipelines.base import CDRLPipeline, Generated

__all__ = ["CDRLPipeline", "Generated"]
