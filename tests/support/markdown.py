"""What tests read out of the documentation: code blocks, tables, links, inline code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: what stands after the fence, and the text."""

    info: str
    text: str


def documents() -> list[Path]:
    """Every page of the repository."""
    folders = ("docs", "examples", "device_profiles", "bench", "packaging", "tests")
    below = (page for folder in folders for page in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *below])


def page(name: str) -> str:
    """Text of a page in docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def words(name: str) -> str:
    """Text of a page in docs/, every run of white space a single space."""
    return " ".join(page(name).split())


def blocks(text: str, info: str) -> list[str]:
    """Fenced blocks with just that after the fence."""
    return [block.text for block in all_blocks(text) if block.info == info]


def all_blocks(text: str) -> list[Block]:
    """All fenced blocks."""
    return [Block(info.strip(), body) for info, body in _FENCE.findall(text)]


def tables(text: str) -> list[list[list[str]]]:
    """All tables as rows of cells, each without its two heading lines."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return [rows[2:] for rows in found]


def links(text: str) -> list[str]:
    """Targets of all links outside of code."""
    return _LINK.findall(_SPAN.sub("", _FENCE.sub("", text)))


def spans(text: str) -> list[str]:
    """Inline code."""
    return _SPAN.findall(_FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """What can stand after the # of a link to this page."""
    plain = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}
