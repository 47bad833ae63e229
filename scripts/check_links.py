"""Checks that every relative link and picture in the Markdown files leads to something.

A link with a fragment must name a heading of the file that it leads to. Links to other sites
are not followed: a check must not depend on the network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_OURS = {".venv", "build", "dist", "data", "checkpoints", "node_modules"}

FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|<(?:img|a)[^>]*?(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def markdown_files(root: Path) -> Iterator[Path]:
    """Yields the project's own Markdown files."""
    for path in sorted(root.rglob("*.md")):
        parts = path.relative_to(root).parts
        if not NOT_OURS.intersection(parts) and not any(part.startswith(".") for part in parts):
            yield path


def anchors(text: str) -> set[str]:
    """The fragments that lead to a heading of `text`, spelled as code hosts spell them."""
    headings = HEADING.findall(FENCED.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> Iterator[str]:
    """Yields one message for every link of the file `path` that leads nowhere."""
    text = path.read_text(encoding="utf-8")
    for match in LINK.finditer(FENCED.sub(lambda block: "\n" * block.group().count("\n"), text)):
        target = match.group(1) or match.group(2)
        if ELSEWHERE.match(target):
            continue
        name, _, fragment = target.partition("#")
        destination = (path.parent / name).resolve() if name else path
        if not destination.exists():
            yield f"{path}: {target}: no such file"
        elif fragment and fragment not in anchors(destination.read_text(encoding="utf-8")):
            yield f"{path}: {target}: no heading of that name"


def main(root: Path = ROOT) -> int:
    broken = [message for path in markdown_files(root) for message in broken_links(path)]
    sys.stderr.write("".join(f"{message}\n" for message in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
