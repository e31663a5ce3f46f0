"""What a trained model is used for."""

from typing import TYPE_CHECKING

from cdrl import __version__
from cdrl.exports import on_demand

if TYPE_CHECKING:
    from pipelines.base import CDRLPipeline
    from pipelines.composition import compose, parse_concepts
    from pipelines.detection.detect import Detection, detect
    from pipelines.evaluation.evaluate import Comparison, evaluate_run
    from pipelines.guidance import ClassifierFree, Guidance
    from pipelines.inpainting.fill import Averaged, Hidden, fill
    from pipelines.inpainting.masks import box, irregular
    from pipelines.interpolation import interpolated
    from pipelines.results import Filled, Generated
else:  # not for type checkers, to which any name would then be right
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "pipelines.base": ("CDRLPipeline",),
            "pipelines.composition": ("compose", "parse_concepts"),
            "pipelines.detection.detect": ("Detection", "detect"),
            "pipelines.evaluation.evaluate": ("Comparison", "evaluate_run"),
            "pipelines.guidance": ("ClassifierFree", "Guidance"),
            "pipelines.inpainting.fill": ("Averaged", "Hidden", "fill"),
            "pipelines.inpainting.masks": ("box", "irregular"),
            "pipelines.interpolation": ("interpolated",),
            "pipelines.results": ("Filled", "Generated"),
        },
    )

__all__ = [
    "Averaged",
    "CDRLPipeline",
    "ClassifierFree",
    "Comparison",
    "Detection",
    "Filled",
    "Generated",
    "Guidance",
    "Hidden",
    "__version__",
    "box",
    "compose",
    "detect",
    "evaluate_run",
    "fill",
    "interpolated",
    "irregular",
    "parse_concepts",
]
