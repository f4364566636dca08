"""Weights out of a PyTorch file without PyTorch.

The format is the one that ``torch.save`` wrote before version 1.6: five pickles (a magic number, the
protocol, the system, the state itself, the keys of its storages), then each storage as its length and raw
numbers. Pickles can run any code, so only the five names that a table of tensors needs are let through.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class StorageType(NamedTuple):
    """The kind of numbers in a storage."""

    dtype: str


class Storage(NamedTuple):
    """A flat array that follows the pickles, by the key that names it there."""

    key: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In numbers, not bytes."""


def read_tensors(data: bytes) -> Arrays:
    """The tensors of a saved state dictionary.

    Args:
        data: The whole file.

    Raises:
        ValueError: If it is not of that format, or names anything but tensors.
    """
    stream = io.BytesIO(data)
    try:
        magic, protocol, _ = (_load(stream) for _ in range(3))
        if magic != MAGIC or protocol != PROTOCOL:
            raise ValueError("this is not a PyTorch file of the format before version 1.6")
        state, keys = _load(stream), _load(stream)
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"this PyTorch file cannot be read: {error}") from error
    tensors = {name: value for name, value in _named(state).items() if isinstance(value, Tensor)}
    numbers = _storages(stream, keys, {tensor.storage.key: tensor.storage for tensor in tensors.values()})
    return {name: _viewed(tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()}


class _Unpickler(pickle.Unpickler):
    """Unpickles tables of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no tensor needs") from None

    def persistent_load(self, pid: Sequence[object]) -> Storage:
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(size, int):
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        return Storage(str(key), storage_type.dtype, size)


def _rebuilt(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> Tensor:
    return Tensor(storage, offset, shape, strides)


_ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch", "FloatStorage"): StorageType("<f4"),
    ("torch", "LongStorage"): StorageType("<i8"),
}


def _load(stream: io.BytesIO) -> object:
    return _Unpickler(stream).load()


def _named(state: object) -> Mapping[str, object]:
    if not isinstance(state, dict):
        raise ValueError(f"expected a table of tensors, got {type(state).__name__}")  # noqa: TRY004
    return state


def _storages(
    stream: io.BytesIO, keys: object, known: Mapping[str, Storage]
) -> dict[str, NDArray[np.generic]]:
    numbers: dict[str, NDArray[np.generic]] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = known.get(str(key))
        if storage is None or int.from_bytes(stream.read(8), "little") != storage.size:
            raise ValueError(f"storage {key!r} is not the one that the tensors refer to")
        dtype = np.dtype(storage.dtype)
        numbers[storage.key] = np.frombuffer(stream.read(storage.size * dtype.itemsize), dtype)
    if missing := sorted(set(known) - set(numbers)):
        raise ValueError(f"storage {missing[0]!r} is missing")
    return numbers


def _viewed(tensor: Tensor, numbers: NDArray[np.generic]) -> NDArray[np.generic]:
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if min(tensor.offset, *tensor.strides, 0) < 0 or last >= max(1, numbers.size):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * numbers.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view).reshape(tensor.shape)
