"""Models given to, and taken from, the Hugging Face Hub: the same folders that ``export`` and `save_pretrained` write.

Needs huggingface_hub, the extra ``hub``; its own settings say where the Hub is (HF_ENDPOINT) and who asks (HF_TOKEN).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from cdrl import __version__
from cdrl.arguments import check_kind
from cdrl.runs.run import RunError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ("*.safetensors", "*.json", "*.md", "*.png", "*.yaml")
"""What a model folder is made of; nothing else is fetched, and no pickle."""


def is_hub_name(text: object) -> bool:
    """Whether ``text`` can only be meant as OWNER/NAME on the Hub: there is no such folder, nor one called OWNER."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        return False
    owner = Path(text).parts[0]
    return owner != "runs" and not Path(owner).exists()


def pulled(name: str) -> Path:
    """The folder of a model of the Hub, fetched unless it was before.

    Raises:
        RunError: huggingface_hub is missing, or the Hub does not give it out.
    """
    hub = _hub(name)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_FILES), **_address(), library_version=__version__))
    except _failures() as error:
        raise RunError(f"{name}: no folder here, and the Hub does not give it out: {_first_line(error)}") from None


def push_folder(folder: Path, name: str, *, private: bool) -> str:
    """Put the files of a model folder into a repository, which is made where there is none; returns its address.

    Raises:
        RunError: huggingface_hub is missing, or the Hub does not take it.
        ValueError: ``name`` is not OWNER/NAME.
    """
    check_kind("name", name, str, "OWNER/NAME")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected OWNER/NAME, found '{name}'")
    api = _hub(name).HfApi(**_address(), library_name="cdrl", library_version=__version__)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(_FILES), commit_message="Weights")
    except _failures() as error:
        raise RunError(f"{name}: the Hub does not take it: {_first_line(error)}") from None
    return str(address)


def _hub(name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise RunError(
            f"{name}: a name on the Hugging Face Hub needs huggingface_hub: pip install 'huggingface_hub>=1,<3', or "
            "this project's extra 'hub'"
        ) from None
    return huggingface_hub


def _address() -> dict[str, str | None]:
    """Where the Hub is, for those that have one of their own; huggingface_hub reads it when it is imported only."""
    return {"endpoint": os.environ.get("HF_ENDPOINT")}


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: for names, for answers and for connections."""
    from huggingface_hub.errors import HTTPError  # of its HTTP library, which differs between its versions

    return (OSError, ValueError, HTTPError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
