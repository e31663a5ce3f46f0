"""The two networks: an energy and an initializer, each for grids and for 2-D points."""

from cdrl.networks.energy import EnergyNetwork, FoldedEnergy
from cdrl.networks.initializer import PointInitializer, UNetInitializer

__all__ = ["EnergyNetwork", "FoldedEnergy", "PointInitializer", "UNetInitializer"]
