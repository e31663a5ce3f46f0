"""A published data set turned into shards, both splits."""

from __future__ import annotations

from collections.abc import Iterator

from cdrl.config import Config, ConfigError
from cdrl.data import local_folder, open_source, write_prepared
from cdrl.runs.lock import locked


def run_preparation(config: Config) -> Iterator[str]:
    """Write both splits of ``config.data`` below ``data.prepared``, or go on with them; one line for each.

    Raises:
        ConfigError: the configuration names no folder for them.
        DataError: the published files are missing, damaged, or differ from the published layout; or the shards are to
            lie elsewhere than on this machine.
        RunError: another command is preparing there.
    """
    data = config.data
    if data.prepared is None:
        raise ConfigError("data.prepared must name the folder for the shards, e.g. data.prepared=data/prepared/celeba")
    with locked(local_folder(data)):
        for split in ("train", "test"):
            folder = write_prepared(data, split, open_source(data, split))
            yield f"{split} split in {folder}"
