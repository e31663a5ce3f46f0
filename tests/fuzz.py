"""Every kind of file that is read, damaged at random: one clear error or a result, and nothing else.

    python -m pytest -n 0 -m fuzz tests/fuzz.py
    CDRL_FUZZ_SEED=7 CDRL_FUZZ_CASES=20000 python -m pytest -n 0 -m fuzz tests/fuzz.py

A case is a kind of file and a number; together with the seed they say what is done to the file. Cases run in processes
of their own, which may grow by 1.5 GB and have ten seconds a case. A finding is an error of a kind that the command
line does not turn into one line, an error that does not name the file, a process that ends or hangs, and whatever
starts a command, connects to something or looks up a file's wishes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 10
MEMORY = 1536 * 2**20
PROCESSES = 2
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
HOSTILE = (
    b"cos\nsystem\n(X\x0c\x00\x00\x00touch canarytR0",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R0",
    b"c__builtin__\neval\n(X\x1d\x00\x00\x00open('canary', 'w').write('x')tR0",
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    b"r\xff\xff\xff\x7f",
    b"\x96\xff\xff\xff\xff\xff\x00\x00\x00",
)
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
    "-1", "0", "1", "10", "1000000", "1000000000000", "9" * 40, "1e400", "-5", "0.5", "NaN", "Infinity", "null", "true",
    '""', '"x"', "[]", "{}", "[[]]", '{"a": 1}', "[" * 3000, "!!int ''", "!!timestamp x", "&a [*a, *a]", "../../x", "~",
)  # fmt: skip


class Kind(NamedTuple):
    """A kind of file: what makes a folder of small valid ones, which of them is damaged, and what reads it."""

    make: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]


def kinds() -> dict[str, Kind]:
    """All of them, by name."""
    # Here, so that the process that only watches need not import all this.
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from autoencoder.importing import load_published_autoencoder
    from autoencoder.latents import encode_images, fingerprint, read_latents
    from autoencoder.model import load_autoencoder
    from cdrl.config import DataConfig
    from cdrl.config_files import load_config
    from cdrl.data import GridSet, Sample, read_shards, stream_shards, write_shards
    from cdrl.data.images.files import read_bytes
    from cdrl.data.readers.celeba import open_celeba, open_celebahq
    from cdrl.data.readers.dtd import open_dtd
    from cdrl.data.readers.folders import open_folder, open_shard_folder
    from cdrl.data.readers.idx import open_fashion_mnist
    from cdrl.data.readers.pickles import open_cifar10, open_imagenet32
    from cdrl.data.readers.svhn import open_svhn
    from cdrl.runs.published import load_published
    from cdrl.runs.records import read_checkpoint_record
    from cdrl.runs.run import Run
    from pipelines import CDRLPipeline
    from pipelines.evaluation.distances import read_statistics
    from tests import layouts
    from tests.helpers import FIXTURES, save_tiny_run, tiny_autoencoder, tiny_config, tiny_values, write_config
    from tests.published import Sizes, diffusers_weights, published_model, write_diffusers

    def of(name: str) -> DataConfig:
        """The settings under which a reader opens its files; the readers are given the path itself."""
        return DataConfig(name=name, path=Path("unused"), image_size=28, check_sums=False)

    of_cifar, of_imagenet, of_fashion, of_dtd = map(of, ("cifar10", "imagenet32", "fashion_mnist", "dtd"))

    def all_parts(source: Any) -> None:
        for _ in source.parts(0):
            pass

    def copied(name: str) -> Callable[[Path], object]:
        return lambda folder: shutil.copy(FIXTURES / name, folder / name)

    def imagenet(folder: Path) -> None:
        batch = {"data": layouts.PIXELS, "labels": [1, 2, np.int64(3), 1000], "mean": layouts.PIXELS.mean(axis=0)}
        (folder / "val_data").write_bytes(pickle.dumps(batch, protocol=5))

    def svhn_packed(folder: Path) -> None:
        from scipy.io import savemat

        pixels = layouts.PIXELS.reshape(4, 3, 32, 32).transpose(2, 3, 1, 0)
        values = {"X": pixels, "y": np.array([[1], [2], [3], [10]], np.uint8)}
        savemat(folder / "test_32x32.mat", values, do_compression=True)

    def jpeg(folder: Path) -> None:
        (folder / "train").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (20, 12), "red").save(folder / "train" / "0.jpg", exif=exif)

    def png(folder: Path) -> None:
        (folder / "train").mkdir()
        Image.new("RGBA", (20, 12), "red").save(folder / "train" / "0.png")

    def shards(folder: Path) -> None:
        samples = [Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), label, (True,)) for label in (0, 1, 0)]
        write_shards(folder / "s", iter(samples), {}, label_names=("a", "b"), attribute_names=("c",))

    def latents(folder: Path) -> None:
        from autoencoder.model import save_autoencoder

        save_autoencoder(folder / "model", tiny_autoencoder())
        images = GridSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8) + torch.arange(3)[:, None, None, None].byte())
        device = torch.device("cpu")
        encode_images(
            tiny_autoencoder(), folder / "model", images, folder / "l", kind="mean", mirrors=False, device=device
        )
        fingerprint(folder / "model")

    def legacy(folder: Path) -> None:
        torch.save(published_model(Sizes()).state_dict(), folder / "x.pt", _use_new_zipfile_serialization=False)

    def diffusers(folder: Path) -> None:
        write_diffusers(folder / "vae", diffusers_weights(published_model(Sizes()), old_names=False, dense=False))

    def diffusers_sharded(folder: Path) -> None:
        diffusers(folder)
        whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
        shard = whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
        names = diffusers_weights(published_model(Sizes()), old_names=False, dense=False)
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard.name)}
        whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))

    def statistics(folder: Path) -> None:
        np.savez(folder / "x.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4))

    def settings(folder: Path) -> None:
        text = (ROOT / "configs" / "faces64.yaml").read_text(encoding="utf-8")
        (folder / "x.yaml").write_text(text, encoding="utf-8")

    def state(folder: Path) -> None:
        values = {"step": 3, "images": 24, "processes": 1, "wall_seconds": 0.5, "cpu_seconds": 0.5, "rollbacks": 0}
        (folder / "state.json").write_text(json.dumps(values, indent=2))

    def safetensors_first_stage(folder: Path) -> None:
        weights = {name: value.contiguous() for name, value in published_model(Sizes()).state_dict().items()}
        save_file(weights, folder / "x.safetensors")

    def opened(latent: bool) -> Callable[[Path], object]:
        return lambda folder: save_tiny_run(folder, latent=latent)

    pretrained = CDRLPipeline.from_pretrained
    cifar = "cifar-10-batches-py"
    return {
        "cifar batch": Kind(layouts.cifar10, f"{cifar}/test_batch", lambda at: open_cifar10(at, "test", of_cifar)),
        "cifar names": Kind(layouts.cifar10, f"{cifar}/batches.meta", lambda at: open_cifar10(at, "test", of_cifar)),
        "cifar archive": Kind(
            layouts.cifar10_archive, "cifar-10-python.tar.gz", lambda at: open_cifar10(at, "test", of_cifar)
        ),
        "imagenet32 pickle": Kind(imagenet, "val_data", lambda at: all_parts(open_imagenet32(at, "test", of_imagenet))),
        "imagenet32 npz": Kind(
            layouts.imagenet32, "val_data.npz", lambda at: all_parts(open_imagenet32(at, "test", of_imagenet))
        ),
        "idx images": Kind(
            layouts.fashion_mnist,
            "t10k-images-idx3-ubyte",
            lambda at: open_fashion_mnist(at, "test", of_fashion),
        ),
        "idx labels": Kind(
            layouts.fashion_mnist,
            "t10k-labels-idx1-ubyte.gz",
            lambda at: open_fashion_mnist(at, "test", of_fashion),
        ),
        "matlab": Kind(layouts.svhn, "test_32x32.mat", lambda at: open_svhn(at, "test", of("svhn"))),
        "matlab packed": Kind(svhn_packed, "test_32x32.mat", lambda at: open_svhn(at, "test", of("svhn"))),
        "npy": Kind(
            layouts.celebahq_arrays,
            "imgHQ00000.npy",
            lambda at: all_parts(open_celebahq(at, "train", of("celebahq"))),
        ),
        "attributes": Kind(
            layouts.celeba, "list_attr_celeba.txt", lambda at: all_parts(open_celeba(at, "train", of("celeba")))
        ),
        "partition": Kind(
            layouts.celeba, "list_eval_partition.txt", lambda at: all_parts(open_celeba(at, "train", of("celeba")))
        ),
        "mapping": Kind(
            layouts.mask_hq,
            "CelebA-HQ-to-CelebA-mapping.txt",
            lambda at: all_parts(open_celebahq(at, "train", of("celebahq"))),
        ),
        "list of pictures": Kind(
            layouts.dtd, "dtd/labels/train1.txt", lambda at: all_parts(open_dtd(at, "train", of_dtd))
        ),
        "jpeg": Kind(jpeg, "train/0.jpg", lambda at: all_parts(open_folder(at / "train", "train", of("folder")))),
        "png": Kind(png, "train/0.png", lambda at: all_parts(open_folder(at / "train", "train", of("folder")))),
        "foreign shard": Kind(
            layouts.foreign_shards, "train/0.tar", lambda at: all_parts(open_shard_folder(at, "train", of("shards")))
        ),
        "index of shards": Kind(shards, "s/index.json", lambda at: read_shards(at / "s")),
        "shard": Kind(shards, "s/shard-000000.tar", lambda at: read_shards(at / "s")),
        "shard on disk": Kind(shards, "s/shard-000000.tar", lambda at: stream_shards(at / "s").grids[:]),
        "table of shards": Kind(shards, "s/samples.safetensors", lambda at: stream_shards(at / "s").grids[:]),
        "index of latents": Kind(latents, "l/index.json", lambda at: read_latents(at / "l", at / "model", "mean")),
        "any bytes": Kind(statistics, "x.npz", lambda at: read_bytes(at / "x.npz")),
        "statistics": Kind(statistics, "x.npz", lambda at: read_statistics(at / "x.npz")),
        "configuration": Kind(settings, "x.yaml", lambda at: load_config(at / "x.yaml")),
        "settings of a run": Kind(
            lambda at: Run(at).open(tiny_config()), "config.yaml", lambda at: Run(at).open(tiny_config())
        ),
        "configuration in JSON": Kind(
            lambda at: write_config(at / "x.yaml", tiny_values()), "x.yaml", lambda at: load_config(at / "x.yaml")
        ),
        "state": Kind(state, "state.json", lambda at: read_checkpoint_record(at / "state.json", 10)),
        "model": Kind(opened(False), "model/config.json", pretrained),
        "model of latents": Kind(opened(True), "model/config.json", pretrained),
        "decoder": Kind(opened(True), "model/autoencoder/autoencoder.json", pretrained),
        "energy": Kind(opened(False), "model/energy.safetensors", pretrained),
        "first stage": Kind(
            opened(True),
            "model/autoencoder/autoencoder.safetensors",
            lambda at: load_autoencoder(at / "model" / "autoencoder"),
        ),
        "authors' checkpoint": Kind(
            copied("official_cond_tiny.pth.tar"),
            "official_cond_tiny.pth.tar",
            lambda at: load_published(at / "official_cond_tiny.pth.tar"),
        ),
        "latent diffusion": Kind(
            copied("compvis_kl_f4_tiny.ckpt"),
            "compvis_kl_f4_tiny.ckpt",
            lambda at: load_published_autoencoder(at / "compvis_kl_f4_tiny.ckpt"),
        ),
        "vector-quantized": Kind(
            copied("compvis_vq_f4_tiny.ckpt"),
            "compvis_vq_f4_tiny.ckpt",
            lambda at: load_published_autoencoder(at / "compvis_vq_f4_tiny.ckpt"),
        ),
        "old checkpoint": Kind(legacy, "x.pt", lambda at: load_published_autoencoder(at / "x.pt", image_size=16)),
        "safetensors": Kind(
            safetensors_first_stage, "x.safetensors", lambda at: load_published_autoencoder(at / "x.safetensors")
        ),
        "diffusers settings": Kind(diffusers, "vae/config.json", lambda at: load_published_autoencoder(at / "vae")),
        "diffusers weights": Kind(
            diffusers, "vae/diffusion_pytorch_model.safetensors", lambda at: load_published_autoencoder(at / "vae")
        ),
        "diffusers shards": Kind(
            diffusers_sharded,
            "vae/diffusion_pytorch_model.safetensors.index.json",
            lambda at: load_published_autoencoder(at / "vae"),
        ),
    }


def damaged(content: bytes, name: str, chance: random.Random) -> bytes:
    """The bytes of a file of this name after one to three mutations, of what is packed in it as often as of itself."""
    if chance.random() < 0.5:
        if content[:2] == b"\x1f\x8b":
            return gzip.compress(damaged(gzip.decompress(content), name.removesuffix(".gz"), chance), 1)
        if content[:4] == b"PK\x03\x04" and zipfile.is_zipfile(io.BytesIO(content)):
            return _with_damaged_member(content, chance)
        if name.endswith(".tar"):
            return _with_damaged_file(content, chance)
    if re.search(r"\.(json|yaml|txt)$", name) and chance.random() < 0.7:
        return _damaged_text(content, chance)
    if name.endswith(".safetensors") and len(content) > 8 and chance.random() < 0.5:
        (length,) = struct.unpack("<Q", content[:8])
        header = _damaged_text(content[8 : 8 + length], chance)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(_MUTATIONS)(content, chance)
    return content


def _place(content: bytes, chance: random.Random) -> int:
    """A place in the bytes, as often among the first, where heads are, as anywhere."""
    return chance.randrange(min(len(content), 400) + 1 if chance.random() < 0.5 else len(content) + 1)


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(chance.choice((1, 1, 4, 30))):
        changed[min(_place(changed, chance), len(changed) - 1)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _number(content: bytes, chance: random.Random) -> bytes:
    form = chance.choice(("<I", ">I", "<H", "<Q", "B"))
    at, number = _place(content, chance), chance.choice(NUMBERS) % 256 ** struct.calcsize(form)
    return content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _without(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + content[at + chance.choice((1, 2, 8, 100)) :]


def _twice(content: bytes, chance: random.Random) -> bytes:
    at, length = _place(content, chance), chance.choice((1, 4, 64, 512))
    return content[: at + length] + content[at:]


def _inserted(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + chance.choice((chance.randbytes(8), chance.choice(HOSTILE))) + content[at:]


def _junk(content: bytes, chance: random.Random) -> bytes:
    pages = (
        b"",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x05.",
        chance.randbytes(99),
    )
    return chance.choice(pages)


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _number, _number, _cut, _without, _twice, _inserted, _inserted, _junk,
)  # fmt: skip


def _damaged_text(content: bytes, chance: random.Random) -> bytes:
    words = re.split(r"([\s,:\[\]{}\"]+)", content.decode("utf-8", errors="replace"))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(words))
        change = chance.randrange(4)
        if change == 0:
            del words[at]
        elif change == 1:
            words.insert(at, words[chance.randrange(len(words))] if words else "")
        else:
            words[at] = chance.choice(WORDS)
        words = words or [""]
    return "".join(words).encode("utf-8", errors="replace")


def _with_damaged_member(content: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in files if name.endswith(".pkl")]
    chosen = chance.choice(pickles if pickles and chance.random() < 0.7 else list(files))
    files[chosen] = damaged(files[chosen], chosen, chance)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return packed.getvalue()


def _with_damaged_file(content: bytes, chance: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar]
        contents = [(name, b"" if file is None else file.read()) for name, file in files]
    if not contents:
        return content
    chosen = chance.randrange(len(contents))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number, (name, file) in enumerate(contents):
            member = tarfile.TarInfo(name)
            changed = damaged(file, name, chance) if number == chosen else file
            member.size = len(changed)
            tar.addfile(member, io.BytesIO(changed))
    return packed.getvalue()


class TooLongError(BaseException):
    """A case has had its time; no reader's own handlers catch this."""


class ForbiddenError(BaseException):
    """A file has had something done that no file may."""


def work(seed: int, cases: range, folder: Path) -> None:
    """Run cases, telling of each on stdout before and after."""
    os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    import warnings

    import torch

    from cdrl.config import ConfigError
    from cdrl.data import DataError
    from cdrl.runs.run import RunError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known, made = kinds(), {}
    for name, kind in known.items():
        made[name] = folder / "whole" / name.replace("'", "").replace(" ", "_")
        made[name].mkdir(parents=True)
        kind.make(made[name])
        kind.read(made[name])  # the whole file is read, and what there is to import has been imported
    content = {name: (made[name] / kind.file).read_bytes() for name, kind in known.items()}
    os.chdir(made["state"])
    watching = True

    def watch(event: str, _: Any) -> None:
        if watching and event in FORBIDDEN:
            raise ForbiddenError(event)

    def stop(*_: Any) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, stop)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    print("ready", flush=True)
    names = list(known)
    for case in cases:
        name = names[case % len(names)]
        kind, file = known[name], made[name] / known[name].file
        print(f"case {case} {name}", flush=True)
        file.write_bytes(damaged(content[name], file.name, random.Random(f"{seed} {case}")))
        signal.alarm(SECONDS)
        try:
            kind.read(made[name])
        except (ConfigError, DataError, RunError) as error:
            text = str(error)
            if file.name not in text and made[name].name not in text:
                _tell(name, case, f"names no file: {text[:300]}")
            # Of several mistakes each has a line of its own.
            if any(len(line) > 600 for line in text.splitlines()) or len(text.splitlines()) > 5 or "<_io." in text:
                _tell(name, case, f"no clear line: {text[:300]}")
        except BaseException as error:
            trace, last = error.__traceback__, ""
            while trace is not None:
                last, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
            _tell(name, case, f"{type(error).__name__} at {last}: {' '.join(str(error).split())[:200]}")
        finally:
            signal.alarm(0)
        if Path("canary").exists() or (made[name] / "canary").exists():
            _tell(name, case, "code of the file was run")
        file.write_bytes(content[name])


def _tell(name: str, case: int, what: str) -> None:
    print("finding " + json.dumps(f"{name}, case {case}: {what}"), flush=True)


def _lines(process: subprocess.Popen[bytes], patience: float) -> Iterator[str]:
    """The lines of a process; TimeoutError where it says nothing for so many seconds."""
    assert process.stdout is not None
    left = b""
    while True:
        if not select.select([process.stdout], [], [], patience)[0]:
            raise TimeoutError
        more = os.read(process.stdout.fileno(), 65536)
        if not more:
            return
        *lines, left = (left + more).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def watched(seed: int, cases: range, folder: Path) -> list[str]:
    """Findings of cases, whose process is started anew where one of them ends it or hangs."""
    findings: list[str] = []
    while cases:
        work_folder = Path(tempfile.mkdtemp(dir=folder))
        command = [sys.executable, "-m", "tests.fuzz", str(seed), str(cases.start), str(cases.stop), str(cases.step)]
        process = subprocess.Popen(
            [*command, str(work_folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        last, what = "before the first case", "its process ended"
        try:
            for line in _lines(process, patience=120 if last.startswith("before") else 3 * SECONDS):
                word, _, rest = line.partition(" ")
                if word == "case":
                    last = rest
                elif word == "finding":
                    findings.append(json.loads(rest))
        except TimeoutError:
            what = "it hangs"
            process.kill()
        code = process.wait()
        shutil.rmtree(work_folder, ignore_errors=True)
        if code == 0 and what != "it hangs":
            break
        findings.append(f"case {last}: {what} ({code})")
        if last.startswith("before"):
            break
        cases = range(int(last.split()[0]) + cases.step, cases.stop, cases.step)
    return findings


@pytest.mark.fuzz
def test_damaged_files_end_in_one_clear_error(tmp_path: Path) -> None:
    seed, count = (
        int(os.environ.get(f"CDRL_FUZZ_{name}", default)) for name, default in (("SEED", 0), ("CASES", 2000))
    )
    from concurrent.futures import ThreadPoolExecutor

    started = time.monotonic()
    with ThreadPoolExecutor(PROCESSES) as pool:
        shares = [range(first, count, PROCESSES) for first in range(PROCESSES)]
        found = [finding for part in pool.map(lambda share: watched(seed, share, tmp_path), shares) for finding in part]
    print(f"{count} cases of seed {seed} in {time.monotonic() - started:.0f} s")
    assert not found, "\n".join(found)


if __name__ == "__main__":
    seed, start, stop_at, step = map(int, sys.argv[1:5])
    work(seed, range(start, stop_at, step), Path(sys.argv[5]))
