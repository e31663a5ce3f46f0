"""A shard as bytes: samples packed into a tar file, and the table of what lies where in one."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from cdrl.data.shards.format import Sample
from cdrl.data.shards.tars import parse_json, parse_label


def pack(name: str, samples: Iterable[Sample], attribute_names: tuple[str, ...]) -> tuple[bytes, int]:
    """A tar file of samples, each encoded as it comes; and how many there were."""
    content, count = io.BytesIO(), 0
    # A fixed time makes equal samples equal files.
    with webdataset.TarWriter(content, encoder=False, mtime=0) as writer:
        for sample in samples:
            files: dict[str, Any] = {"__key__": f"{name.removesuffix('.tar')}-{count:06d}"}
            is_image = sample.grid.dtype == torch.uint8
            files["png" if is_image else "npy"] = _encode_png(sample.grid) if is_image else _encode_npy(sample.grid)
            if sample.label is not None:
                files["cls"] = str(sample.label).encode()
            if attribute_names:
                values = dict(zip(attribute_names, map(bool, sample.attributes), strict=True))
                files["json"] = json.dumps({"attributes": values}).encode()
            writer.write(files)
            count += 1
    return content.getvalue(), count


def tabulate(name: str, content: bytes, attribute_names: tuple[str, ...]) -> dict[str, Tensor]:
    """Where each grid of a whole shard lies, its checksum, and what is known about it: a row a sample."""
    columns: dict[str, list[Any]] = {"offset": [], "length": [], "crc32": [], "label": [], "attributes": []}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = content[member.offset_data : member.offset_data + member.size]
            match member.name.rpartition(".")[2]:
                case "cls":
                    columns["label"].append(parse_label(file, name))
                case "json":
                    values = parse_json(file, name)["attributes"]
                    columns["attributes"].append([values[attribute] for attribute in attribute_names])
                case _:
                    columns["offset"].append(member.offset_data)
                    columns["length"].append(member.size)
                    columns["crc32"].append(zlib.crc32(file))
    return {key: torch.tensor(values) for key, values in columns.items() if values}


def _encode_png(image: Tensor) -> bytes:
    array = image.cpu().numpy()
    content = io.BytesIO()
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(content, format="PNG")
    return content.getvalue()


def _encode_npy(grid: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, grid.cpu().numpy(), allow_pickle=False)
    return content.getvalue()
