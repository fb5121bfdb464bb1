"""Weights that packages exchange: arrays by name from PyTorch and safetensors files, and to the latter, with neither.

A PyTorch file is a pickle, and a pickle may ask for any function to be called. Here it gets none: only tensors are
rebuilt, and every other object becomes an inert placeholder that is left out of the result.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowguide import storage
from flowguide.errors import UserError, listed, one_line

# PyTorch's name of a storage, and safetensors' of a dtype -> NumPy dtype, little-endian.
STORAGES: dict[str, Any] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
SAFETENSORS: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": jnp.bfloat16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_CODES: dict[Any, str] = {np.dtype(dtype): name for name, dtype in SAFETENSORS.items()}
MOST_HEADER = 100_000_000  # bytes, as safetensors itself has it
# The number that starts a PyTorch file from before version 1.6.
LEGACY = 0x1950A86A20F9469CFC6C


class _Damaged(Exception):
    """The file breaks its format."""


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name, in their own dtypes; they may be read-only.

    The content tells the format: safetensors, or what ``torch.save`` writes, old files included. The keys of nested
    dicts are joined by dots: ``torch.save({"ema": model.state_dict()})`` gives ``ema.layer.weight``. Nothing in the
    file is executed.

    Args:
      path: a file, or its address in a bucket.

    Raises:
      UserError: if the file is missing, damaged, of another format, or holds no arrays.
    """
    file = storage.path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the weights {file} ({one_line(error)}): give the path of a file") from error
    try:
        if content[:4] == b"PK\x03\x04":  # a zip's first bytes
            arrays = _flatten(_zipped(content))
        elif content[:1] == b"\x80":  # a pickle's first byte
            arrays = _flatten(_legacy(content))
        else:
            arrays = _safetensors(content)
    except Exception as error:  # a damaged pickle can fail in any way
        reason = one_line(error) or type(error).__name__
        message = f"{file} is not a whole file of torch.save or safetensors ({reason}): download it again"
        raise UserError(message) from error
    if not arrays:
        raise UserError(f"{file} holds no arrays: save the state dict of the network, not a compiled program")
    return arrays


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the texts by name that a safetensors file says of itself; none for a file of another kind.

    Args:
      path: a file that ``read`` takes.
    """
    with storage.path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MOST_HEADER:
            return {}
        try:
            stated = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            return {}
    return {str(k): v for k, v in stated.items() if isinstance(v, str)} if isinstance(stated, dict) else {}


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays to a safetensors file, which then holds all of them or, if that fails, what it held before.

    Args:
      path: of the file, or its address in a bucket.
      arrays: by name, of a dtype in ``SAFETENSORS``.
      metadata: texts that the file says of itself.

    Raises:
      ValueError: for another dtype.
      OSError: if the file cannot be written.
    """
    storage.replace_bytes(storage.path(path), to_safetensors(arrays, metadata or {}))


def to_safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Returns the content of a safetensors file: 8 bytes of length, a JSON header, the arrays without gaps.

    The data start at a multiple of 8 bytes, and larger items come first, so that each array is aligned.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[bytes] = []
    start = 0
    for name in sorted(arrays, key=lambda name: (-np.asarray(arrays[name]).dtype.itemsize, name)):
        a = np.asarray(arrays[name])
        kind = _CODES.get(a.dtype.newbyteorder("<"))
        if kind is None:
            raise ValueError(f"{name} is of dtype {a.dtype}, not one of {', '.join(SAFETENSORS)}")
        parts.append(a.astype(a.dtype.newbyteorder("<")).tobytes())
        header[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [start, start + len(parts[-1])]}
        start += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def check(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Checks that ``arrays`` has exactly the names and shapes in ``shapes``.

    Args:
      arrays: as ``read`` returns them.
      shapes: expected shapes by name.
      what: the network, for the message.

    Raises:
      UserError: naming what is missing, surplus or misshapen.
    """
    missing, surplus = ([k for k in a if k not in b] for a, b in ((shapes, arrays), (arrays, shapes)))
    misshapen = [f"{k} {arrays[k].shape}, not {s}" for k, s in shapes.items() if k in arrays and arrays[k].shape != s]
    faults = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    found = "; ".join(f"{len(names)} {fault}: {listed(names, 5)}" for fault, names in faults.items() if names)
    if found:
        raise UserError(f"these are not the weights of {what}: {found}")


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    """8 bytes of length, a JSON header {name: {dtype, shape, data_offsets}}, the data."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= len(content) - 8:
        raise _Damaged("it starts like neither")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = memoryview(content)[8 + length :]
    arrays = {}
    for name, entry in header.items():
        dtype, shape, (start, end) = np.dtype(SAFETENSORS[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise _Damaged(f"{name} lies outside of it")
        arrays[name] = np.frombuffer(data[start:end], dtype).reshape(shape)
    return arrays


def _zipped(content: bytes) -> Any:
    """Of PyTorch ≥ 1.6: a pickle ``NAME/data.pkl``, and the storages as ``NAME/data/KEY``."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if not names:
            raise _Damaged("it is a zip without data.pkl")
        folder = names[0][: -len("data.pkl")]
        storages: dict[str, bytes] = {}

        def storage_of(kind: str, key: str, location: str, length: int) -> Callable[[], np.ndarray]:
            if key not in storages:
                storages[key] = archive.read(f"{folder}data/{key}")
            return lambda: np.frombuffer(storages[key], STORAGES[kind])

        return _Unpickler(io.BytesIO(archive.read(names[0])), storage_of).load()


def _legacy(content: bytes) -> Any:
    """Of PyTorch < 1.6: pickles of a number, a version, the system, the object and the storages' keys; the storages."""
    file = io.BytesIO(content)
    kinds: dict[str, str] = {}
    storages: dict[str, np.ndarray] = {}

    def storage_of(kind: str, key: str, location: str, length: int, view: Any = None) -> Callable[[], np.ndarray]:
        if view is not None:
            raise _Damaged("it holds views of storages, which only PyTorch 0.3 wrote")
        kinds[key] = kind
        return lambda: storages[key]

    number, _, _, tree, keys = (_Unpickler(file, storage_of).load() for _ in range(5))
    if number != LEGACY:
        raise _Damaged("it is a pickle, but not of PyTorch")
    for key in keys:
        length, dtype = int.from_bytes(file.read(8), "little"), np.dtype(STORAGES[kinds[key]])
        storages[key] = np.frombuffer(file.read(length * dtype.itemsize), dtype)
    return tree


class _Tensor:
    """Where a tensor lies in its storage, which a legacy file holds only after the pickle."""

    def __init__(
        self, storage: Callable[[], np.ndarray], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        values = self.storage()
        numbers = [self.offset, *self.shape, *self.strides]
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers):
            raise _Damaged("a tensor has an impossible shape")
        if not math.prod(self.shape):
            return np.zeros(self.shape, values.dtype)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if last >= len(values):
            raise _Damaged("a tensor reaches beyond its storage")
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Rebuilds dicts of tensors. Whatever else the pickle names becomes a class of placeholders; none is imported."""

    def __init__(self, file: io.BytesIO, storage_of: Callable[..., Callable[[], np.ndarray]]):
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

        # Made for each file, so that a pickle that sets attributes spoils nothing for others.
        class Placeholder:
            def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
                return super().__new__(cls)

            def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
                return self

            def ignore(self, *args: Any, **kwargs: Any) -> None: ...

            __init__ = __setstate__ = __setitem__ = append = extend = add = ignore

        def rebuild(
            storage: Callable[[], np.ndarray], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
        ) -> _Tensor:
            return _Tensor(storage, offset, shape, strides)

        def same(tensor: _Tensor, *_: Any) -> _Tensor:
            return tensor

        self._placeholder = Placeholder
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor": rebuild,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch._utils._rebuild_parameter": same,
            "torch._utils._rebuild_parameter_with_state": same,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            if name not in STORAGES:
                raise _Damaged(f"it holds numbers of an unknown kind, torch.{name}")
            return name
        if module.startswith("torch") and name.startswith("_rebuild") and f"{module}.{name}" not in self._known:
            raise _Damaged(f"it holds tensors of an unknown kind, {module}.{name}")
        return self._known.get(f"{module}.{name}", self._placeholder)

    def persistent_load(self, pid: Any) -> Callable[[], np.ndarray]:
        kind, *rest = pid
        if kind != "storage" or rest[0] not in STORAGES:
            raise _Damaged("it refers to storages of an unknown kind")
        return self._storage_of(*rest)


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
        if isinstance(node, _Tensor):
            yield prefix, node.array()
        elif isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                yield from leaves(value, f"{prefix}.{i}" if prefix else str(i))

    return dict(leaves(tree, ""))
