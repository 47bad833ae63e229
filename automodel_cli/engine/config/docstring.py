"""The `Args:` of a docstring: what each argument means, in the words of its author.

Reads the Google style, and its variants in torch and transformers, which put a type in parentheses
after the name. Only a section that is there is read: without one, nothing is guessed.
"""

from __future__ import annotations

import inspect
import re

_HEADER = re.compile(r"(?:Args|Arguments|Parameters):\s*")
_ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:\s*,\s*\w+)*)\s*(?:\(.*?\))?\s*:(?:\s+(?P<text>.*))?")


def summary(docstring: str | None) -> str | None:
    r"""The first paragraph as one line.

    >>> summary("A GPT-2\n    with fresh weights.\n\n    More.")
    'A GPT-2 with fresh weights.'
    """
    first = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    is_code = first.startswith((">>>", "```"))
    return None if is_code else " ".join(first.split()) or None


def argument_meanings(docstring: str | None) -> dict[str, str]:
    r"""The text of each argument on one line.

    >>> argument_meanings("Adds.\n\nArgs:\n    a (int, optional): one\n        number.\n    b: another.\n")
    {'a': 'one number.', 'b': 'another.'}
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    headers = [index for index, line in enumerate(lines) if _HEADER.fullmatch(line.strip())]
    if not headers:
        return {}
    body = _indented_below(lines, headers[0])
    first = next((line for line in body if line.strip()), "")
    indent = len(first) - len(first.lstrip())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body:
        at_indent = len(line) - len(line.lstrip()) == indent
        entry = _ENTRY.fullmatch(line.strip()) if at_indent else None
        if entry:
            names = [name.strip(" *") for name in entry["names"].split(",")]
        text = (entry["text"] or "") if entry else line
        for name in names:
            found[name] = f"{found.get(name, '')} {text.strip()}".strip()
    return {name: text for name, text in found.items() if text}


def _indented_below(lines: list[str], header: int) -> list[str]:
    """The lines after `header` that are indented deeper than it, blank ones between them included."""
    depth = len(lines[header]) - len(lines[header].lstrip())
    body: list[str] = []
    for line in lines[header + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        body.append(line)
    return body
