"""Hypothesis strategies: types that travel with every field drawn, and what the wire may do to them."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

TEXT = st.text(max_size=8)
FLOATS = st.floats(allow_nan=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DTYPES = [np.dtype(name) for name in "|b1 |u1 |i1 <u2 <i2 <u4 <i4 <u8 <i8 <f2 <f4 <f8".split()]  # noqa: SIM905
SHAPES = npst.array_shapes(min_dims=0, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: npst.arrays(dtype, SHAPES))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT | st.binary(max_size=20) | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: INTEGERS,
    float: FLOATS,
    bool: st.booleans(),
    type(None): st.none(),
    Any: JSON,
    object: JSON,
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type: a dataclass with all its fields, or anything that a field may be."""
    return _drawn(kind)


@functools.cache  # making a strategy takes longer than drawing from it
def _drawn(kind: Any) -> st.SearchStrategy[Any]:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return st.builds(kind, **{name: drawn(hint) for name, hint in get_type_hints(kind).items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of([drawn(argument) for argument in arguments])
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        listed = st.lists(drawn(arguments[0]), max_size=3).map(tuple)
        return listed if several else st.tuples(*map(drawn, arguments))
    if origin in (Mapping, dict):
        return st.dictionaries(drawn(arguments[0]), drawn(arguments[1]), max_size=3)
    raise TypeError(f"no strategy for {kind}")


@st.composite
def damaged(draw: st.DrawFn, payload: bytes) -> bytes:
    """Bytes of a message after a few changes: cut, overwritten, inserted or left out."""
    data = bytearray(payload)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 4)))
        data[start:end] = draw(st.binary(max_size=4))
    return bytes(data)


@st.composite
def distorted(draw: st.DrawFn, body: Any) -> Any:
    """Plain data with something replaced, left out or added somewhere."""
    if isinstance(body, dict) and body and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(body)))
        change = draw(st.sampled_from(["inside", "inside", "without", "with"]))
        if change == "without":
            return {name: item for name, item in body.items() if name != key}
        if change == "with":
            return {**body, draw(TEXT): draw(JSON)}
        return {**body, key: draw(distorted(body[key]))}
    if isinstance(body, list) and body and draw(st.booleans()):
        place = draw(st.integers(0, len(body) - 1))
        return [*body[:place], draw(distorted(body[place])), *body[place + 1 :]]
    return draw(JSON | st.binary(max_size=8))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, arrays by dtype, shape and bytes; a tuple equals its list."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)
