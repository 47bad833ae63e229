"""Reads the data files that ship inside the package, and refuses changed ones."""

from __future__ import annotations

import hashlib
from importlib import resources

from automodel_cli.errors import DataError

SHAKESPEARE = "shakespeare.txt"
GPT2_MERGES = "gpt2/vocab.bpe"

SHA256 = {
    SHAKESPEARE: "e16329888ba584b66d01d358b2b5bea36cdaf7b74c7260a1ee2b4c85e62b02f8",
    GPT2_MERGES: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def read_asset(name: str) -> str:
    """The text of a shipped file, compared with its known SHA-256.

    Raises:
        DataError: The file is missing or differs from the one that was released.
    """
    path = resources.files("automodel_cli.engine.prep") / "assets" / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError("a data file of amcli is missing", where=str(path), help=_REINSTALL) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise DataError(
            f"a data file of amcli was changed: its SHA-256 is {found}, not {SHA256[name]}",
            where=str(path),
            help=_REINSTALL,
        )
    return content.decode("utf-8")


_REINSTALL = "install amcli again"
