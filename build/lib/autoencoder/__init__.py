"""The first stage: images to latents and back."""

from typing import TYPE_CHECKING

from cdrl import __version__
from cdrl.exports import on_demand

if TYPE_CHECKING:
    from autoencoder.model import Autoencoder, GaussianLatent, QuantizedLatent
else:  # not for type checkers, to which any name would then be right
    __getattr__, __dir__ = on_demand(
        __name__, {"autoencoder.model": ("Autoencoder", "GaussianLatent", "QuantizedLatent")}
    )

__all__ = ["Autoencoder", "GaussianLatent", "QuantizedLatent", "__version__"]
