"""Data: published formats, drawn faces, shards and points, and how they are served to training."""

from cdrl.data.fingerprint import data_facts
from cdrl.data.images.census import LEFT_OUT, data_in_words
from cdrl.data.images.eight_bits import as_floats, expect_finite, fewer_of_large, image_batches, to_bytes
from cdrl.data.images.files import Decoding, read_picture
from cdrl.data.images.preparing import prepare_images
from cdrl.data.images.sets import DataError, Grids, GridSet, ImageSet, SomeGrids, Source, Split
from cdrl.data.images.sheets import contact_sheet, filled_row
from cdrl.data.loading import (
    StepAhead,
    StreamedTrainingSet,
    TrainingSet,
    check_batch,
    class_names,
    image_training_set,
    latent_training_set,
    num_classes,
    possible_labels,
)
from cdrl.data.readers.faces import FACE_STYLES, render_face
from cdrl.data.readers.folders import pictures_in
from cdrl.data.readers.points import (
    NUM_SQUARES,
    checkerboard_density,
    inside_squares,
    sample_checkerboard,
    square_index,
)
from cdrl.data.shards.cache import ShardCache
from cdrl.data.shards.folders import Elsewhere
from cdrl.data.shards.format import Sample
from cdrl.data.shards.prepared import local_folder, read_prepared, write_prepared
from cdrl.data.shards.reading import read_shards
from cdrl.data.shards.streaming import stream_shards
from cdrl.data.shards.writing import write_grids_resumably, write_shards
from cdrl.data.sources import load_images, open_source, training_images

__all__ = [
    "FACE_STYLES",
    "LEFT_OUT",
    "NUM_SQUARES",
    "DataError",
    "Decoding",
    "Elsewhere",
    "GridSet",
    "Grids",
    "ImageSet",
    "Sample",
    "ShardCache",
    "SomeGrids",
    "Source",
    "Split",
    "StepAhead",
    "StreamedTrainingSet",
    "TrainingSet",
    "as_floats",
    "check_batch",
    "checkerboard_density",
    "class_names",
    "contact_sheet",
    "data_facts",
    "data_in_words",
    "expect_finite",
    "fewer_of_large",
    "filled_row",
    "image_batches",
    "image_training_set",
    "inside_squares",
    "latent_training_set",
    "load_images",
    "local_folder",
    "num_classes",
    "open_source",
    "pictures_in",
    "possible_labels",
    "prepare_images",
    "read_picture",
    "read_prepared",
    "read_shards",
    "render_face",
    "sample_checkerboard",
    "square_index",
    "stream_shards",
    "to_bytes",
    "training_images",
    "write_grids_resumably",
    "write_prepared",
    "write_shards",
]
