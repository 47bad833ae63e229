"""Files that were changed anywhere end in a description or in one clear error, and soon."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from automodel_cli.engine.checkpoint import layout
from automodel_cli.engine.checkpoint.foreign import read_foreign
from automodel_cli.engine.checkpoint.inspect import inspect
from automodel_cli.engine.checkpoint.load_checkpoint import load
from automodel_cli.engine.checkpoint.manifest import MANIFEST_NAME
from automodel_cli.engine.checkpoint.read_tensors import read_weights
from automodel_cli.engine.checkpoint.save import save
from automodel_cli.engine.durable import BLANK_DIGEST, sealed
from automodel_cli.engine.shards.manifest import load_manifest
from automodel_cli.engine.shards.verify import verify_directory
from automodel_cli.errors import AmcliError

TENSORS = {"a.w": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros((), dtype=torch.int64)}
MAX_SECONDS = 10.0
INTERESTING = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"-1", b"1e999", b"NaN", b"[", b"{", b'"', b"null")


def mutated(content: bytes, generator: random.Random) -> bytes:
    """The content with a few changes of the kinds that broken copies and hostile hands make."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        place = generator.randrange(len(changed) + 1)
        length = generator.choice((1, 1, 2, 4, 8, 64))
        kind = generator.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length] * generator.choice((1, 3, 50))
        elif kind == 3:
            new = generator.choice(INTERESTING)
            changed[place : place + len(new)] = new
        elif kind == 4:
            changed[place : place + length] = generator.randbytes(length)
        elif kind == 5:
            other = generator.randrange(len(changed) + 1)
            changed[place : place + length] = changed[other : other + length]
    return bytes(changed)


def torch_file(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
    path = directory / "x.pt"
    torch.save({"model": TENSORS, "step": 3}, path)
    return path, [lambda: read_foreign(path), lambda: read_weights(path)]


def old_torch_file(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
    path = directory / "x.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    return path, [lambda: read_foreign(path), lambda: read_weights(path)]


def distributed_checkpoint(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
    dcp.save({"model": TENSORS}, checkpoint_id=str(directory))
    return directory / ".metadata", [lambda: read_foreign(directory)]


def safetensors_file(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
    path = directory / "x.safetensors"
    save_file(TENSORS, path)
    return path, [lambda: read_foreign(path), lambda: read_weights(path)]


def file_of_a_checkpoint(name: str) -> Callable[[Path], tuple[Path, list[Callable[[], object]]]]:
    def made(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
        from tests.engine.checkpoint.conftest import snapshot_at

        checkpoint = save(directory, snapshot_at(1), facts={"tokenizer": {"name": "bytes", "bos_id": 256}})
        return checkpoint / name, [lambda: inspect(checkpoint), lambda: load(checkpoint)]

    return made


def manifest_of_data(directory: Path) -> tuple[Path, list[Callable[[], object]]]:
    data = Path(__file__).parents[2] / "fixtures/version_0_1_0/data"
    shutil.copytree(data, directory / "data")
    return directory / "data" / MANIFEST_NAME, [
        lambda: load_manifest(directory / "data"),
        lambda: verify_directory(directory / "data"),
    ]


KINDS = {
    "torch.save": torch_file,
    "torch.save before 1.6": old_torch_file,
    "torch.distributed.checkpoint": distributed_checkpoint,
    "safetensors": safetensors_file,
    "manifest of a checkpoint": file_of_a_checkpoint(MANIFEST_NAME),
    "training state": file_of_a_checkpoint(layout.TRAIN_STATE_FILE),
    "configuration of a model": file_of_a_checkpoint(layout.MODEL_CONFIG_FILE),
    "weights of a checkpoint": file_of_a_checkpoint(layout.MODEL_FILE),
    "configuration of a run": file_of_a_checkpoint(layout.CONFIG_FILE),
    "manifest of data": manifest_of_data,
}


def variants(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    generator = random.Random(seed)
    for _ in range(count):
        changed = mutated(content, generator)
        yield changed
        if b'"manifest_sha256": "' in changed:
            # As a hostile hand would leave it, so that the fields are looked at and not only the hash.
            head, _, tail = changed.rpartition(b'"manifest_sha256": "')
            blank = head + b'"manifest_sha256": "' + BLANK_DIGEST.encode() + tail[64:]
            yield sealed(blank.decode(errors="replace"))


def refusals(make, directory: Path, count: int, seed: int) -> list[str]:
    """Reads that many variants in all ways; the messages of those reads that were refused."""
    path, reads = make(directory)
    sound, messages = path.read_bytes(), []
    for read in reads:
        read()
    for content in variants(sound, count, seed):
        path.write_bytes(content)
        for read in reads:
            began = time.process_time()
            try:
                read()
            except AmcliError as error:
                messages.append(error.message)
            assert time.process_time() - began < MAX_SECONDS
    return messages


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_changed_file_is_described_or_refused(make, tmp_path):
    """Nothing but an error of amcli comes out of any of a few dozen changes, and none takes long."""
    messages = refusals(make, tmp_path, count=40, seed=1)

    assert messages
    assert max(map(len, messages)) < 5_000


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_file_changed_thousandfold_is_described_or_refused(make, tmp_path):
    """The same for some thousand changes of each kind of file."""
    assert refusals(make, tmp_path, count=3_000, seed=2)
