"""Draws docs/images/architecture.svg: the rooms of the package in their layers, and which room imports which.

Layers are those of the contract in pyproject.toml, arrows are the imports that stand in the code.

python scripts/draw_architecture.py            write the picture
python scripts/draw_architecture.py --check    exit 1 if the picture is not what the code says now
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PACKAGE = "automodel_cli"
# Nearly every room imports these; their arrows would hide the others.
EVERYWHERE = ("errors", "terminal", "protocols", "durable", "bounded")
ASIDE = {"plan": 0.36, "distributed": -0.3, "shards": 0.2}
WIDTH, BOX_HEIGHT, LAYER_HEIGHT, MARGIN = 960, 34, 84, 16
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")


def layers() -> list[list[str]]:
    """Rooms by layer, high to low, as the import contract states them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    stated = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    rows = [[name.strip().rpartition(".")[2] for name in layer.split("|")] for layer in stated]
    return [row for row in rows if row != ["__main__"]]


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for what only holds rooms.

    >>> room_of("automodel_cli.engine.data.order"), room_of("automodel_cli.engine")
    ('data', None)
    """
    parts = module.split(".")[1:]
    parts = parts[1:] if parts[:1] == ["engine"] else parts
    return parts[0] if parts else None


def imports() -> set[tuple[str, str]]:
    """(importing room, imported room) for every pair of different rooms; imports inside of functions count."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None, exclude_type_checking_imports=True)
    pairs = {
        (room_of(module), room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return {(a, b) for a, b in pairs if a and b and a != b and "__main__" not in (a, b)}


def picture() -> str:
    """The picture as SVG."""
    rows = [row for row in layers() if not set(row) & set(EVERYWHERE)] + [list(EVERYWHERE)]
    height = LAYER_HEIGHT * len(rows) - (LAYER_HEIGHT - BOX_HEIGHT) + 2 * MARGIN
    boxes: dict[str, tuple[float, float, float]] = {}
    for level, row in enumerate(rows):
        step = (WIDTH - 2 * MARGIN) / len(row)
        width = min(150.0, step - 12)
        for place, name in enumerate(row):
            # A room alone in its layer stands beside the middle, so that arrows pass it instead of its neighbours.
            shift = ASIDE.get(name, 0.0) * WIDTH
            boxes[name] = (MARGIN + step * (place + 0.5) - width / 2 + shift, MARGIN + level * LAYER_HEIGHT, width)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(boxes)}
    shown = sorted((a, b) for a, b in imports() if b not in EVERYWHERE)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">',
        f"<title>Rooms of {PACKAGE} and their imports</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for above, below in shown:
        targets = [b for a, b in shown if a == above]
        sources = [a for a, b in shown if b == below]
        x, y, width = boxes[above]
        start = x + width * (targets.index(below) + 1) / (len(targets) + 1), y + BOX_HEIGHT
        x, y, width = boxes[below]
        end = x + width * (sources.index(above) + 1) / (len(sources) + 1), y
        bend = (end[1] - start[1]) / 2
        lines.append(
            f'<path d="M{start[0]:.0f},{start[1]:.0f} C{start[0]:.0f},{start[1] + bend:.0f} {end[0]:.0f},'
            f'{end[1] - bend:.0f} {end[0]:.0f},{end[1]:.0f}" fill="none" stroke="{colours[above]}" '
            'stroke-opacity="0.55">'
            f"<title>{above} imports {below}</title></path>"
            f'<circle cx="{end[0]:.0f}" cy="{end[1]:.0f}" r="2.5" fill="{colours[above]}"/>'
        )
    for name, (x, y, width) in boxes.items():
        lines.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="5" fill="#f7f7f7" '
            f'stroke="{colours[name]}" stroke-width="1.5"/>'
            f'<text x="{x + width / 2:.0f}" y="{y + BOX_HEIGHT / 2 + 5:.0f}" '
            f'text-anchor="middle" fill="#222222">{name}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the picture is out of date")
    drawn = picture()
    if parser.parse_args().check:
        if PICTURE.read_text(encoding="utf-8") != drawn:
            print(f"{PICTURE.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    PICTURE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
