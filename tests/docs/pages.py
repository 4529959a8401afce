"""The project's Markdown pages, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/cold-boot.md",
        "docs/lab.md",
        "docs/own-mesh.md",
        "docs/token-rotation.md",
    )
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_TABLE = re.compile(r"<!-- fields: (\w+) -->\n((?:\|.*\n)+)")


@dataclass(frozen=True)
class Command:
    """A command as a page shows it."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands(program: str) -> Iterator[Command]:
    """Every call of a program in the pages' code, inline or in blocks, comments left out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for _, block in _FENCE.findall(text) for line in block.splitlines()]
        lines += _SPAN.findall(_FENCE.sub("", text))
        for line in lines:
            call = line.removeprefix("$ ").partition(" #")[0].strip()
            call = call.removeprefix(".venv/bin/")
            if call.startswith(f"{program} "):
                yield Command(page.name, call)


def links(page: Path) -> Iterator[str]:
    """Every relative link of a page."""
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def field_tables(page: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Tables that stand below `<!-- fields: MODEL -->`: default and meaning by field."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for model, table in _TABLE.findall(page.read_text(encoding="utf-8")):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.splitlines()[2:]
        ]
        found[model] = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows}
    return found
