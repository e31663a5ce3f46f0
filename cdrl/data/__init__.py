"""Data: published formats, drawn faces, shards and points, and how they are served to training."""

from cdrl.data.faces import FACE_STYLES, render_face
from cdrl.data.folders import Split
from cdrl.data.loading import (
    TrainingSet,
    check_batch,
    class_names,
    image_training_set,
    latent_training_set,
    num_classes,
    possible_labels,
)
from cdrl.data.points import NUM_SQUARES, checkerboard_density, inside_squares, sample_checkerboard, square_index
from cdrl.data.preparing import prepare_images, read_picture
from cdrl.data.sets import DataError, GridSet, ImageSet
from cdrl.data.shards import Sample, read_shards, write_shards
from cdrl.data.sources import load_images

__all__ = [
    "FACE_STYLES",
    "NUM_SQUARES",
    "DataError",
    "GridSet",
    "ImageSet",
    "Sample",
    "Split",
    "TrainingSet",
    "check_batch",
    "checkerboard_density",
    "class_names",
    "image_training_set",
    "inside_squares",
    "latent_training_set",
    "load_images",
    "num_classes",
    "possible_labels",
    "prepare_images",
    "read_picture",
    "read_shards",
    "render_face",
    "sample_checkerboard",
    "square_index",
    "write_shards",
]
