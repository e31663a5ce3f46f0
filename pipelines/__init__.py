"""What a trained model is used for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.base import CDRLPipeline, Generated

__all__ = ["CDRLPipeline", "Generated"]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: the command line's help shall not wait for the libraries.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines import base

    return getattr(base, name)
