"""MQTT topics and filters as trees, so that matching takes time by depth and not by number.

``+`` stands for one level and a final ``#`` for any number of them, the level before it included; neither
matches a first level that begins with ``$``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Node(Generic[T]):
    children: dict[str, _Node[T]] = field(default_factory=dict)
    items: dict[object, T] = field(default_factory=dict)


def _at(node: _Node[T], path: str) -> _Node[T]:
    for level in path.split("/"):
        node = node.children.setdefault(level, _Node())
    return node


def _discard(root: _Node[T], path: str, key: object) -> None:
    """Take one item from a path and prune the branches that this empties."""
    trail = [(root, "")]
    for level in path.split("/"):
        child = trail[-1][0].children.get(level)
        if child is None:
            return
        trail.append((child, level))
    trail[-1][0].items.pop(key, None)
    while len(trail) > 1 and not trail[-1][0].items and not trail[-1][0].children:
        _, level = trail.pop()
        del trail[-1][0].children[level]


class FilterTree(Generic[T]):
    """Subscribers by filter."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, pattern: str, subscriber: T) -> None:
        """Subscribe to a filter; twice is once."""
        _at(self._root, pattern).items[subscriber] = subscriber

    def discard(self, pattern: str, subscriber: T) -> None:
        """End a subscription, if there is one."""
        _discard(self._root, pattern, subscriber)

    def matching(self, topic: str) -> list[T]:
        """Subscribers whose filters match a topic, each once."""
        return list(dict.fromkeys(_subscribers(self._root, topic.split("/"), 0)))


class TopicTree(Generic[T]):
    """One value by topic."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def put(self, topic: str, value: T) -> None:
        """Set or replace a topic's value."""
        _at(self._root, topic).items[None] = value

    def discard(self, topic: str) -> None:
        """Remove a topic's value, if there is one."""
        _discard(self._root, topic, None)

    def matching(self, pattern: str) -> list[T]:
        """Values of the topics that a filter matches."""
        return list(_values(self._root, pattern.split("/"), 0))


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter matches a topic."""
    tree: FilterTree[str] = FilterTree()
    tree.add(pattern, pattern)
    return bool(tree.matching(topic))


def _subscribers(node: _Node[T], levels: Sequence[str], depth: int) -> Iterator[T]:
    wild = depth > 0 or not levels[0].startswith("$")
    if wild and "#" in node.children:
        yield from node.children["#"].items.values()
    if depth == len(levels):
        yield from node.items.values()
        return
    for key in (levels[depth], "+") if wild else (levels[depth],):
        child = node.children.get(key)
        if child is not None:
            yield from _subscribers(child, levels, depth + 1)


def _values(node: _Node[T], levels: Sequence[str], depth: int) -> Iterator[T]:
    if depth == len(levels):
        yield from node.items.values()
    elif levels[depth] == "#":
        yield from node.items.values()
        for child in _wild(node, depth):
            yield from _everything(child)
    elif levels[depth] == "+":
        for child in _wild(node, depth):
            yield from _values(child, levels, depth + 1)
    elif levels[depth] in node.children:
        yield from _values(node.children[levels[depth]], levels, depth + 1)


def _everything(node: _Node[T]) -> Iterator[T]:
    yield from node.items.values()
    for child in node.children.values():
        yield from _everything(child)


def _wild(node: _Node[T], depth: int) -> Iterator[_Node[T]]:
    return (child for level, child in node.children.items() if depth > 0 or not level.startswith("$"))
