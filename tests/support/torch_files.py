"""Writes trees of arrays as ``torch.save`` does, without PyTorch."""

import io
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Storage:
    def __init__(self, key):
        self.key = key


def _named(module, name):
    function = types.FunctionType((lambda *a: a).__code__, {}, name)
    function.__module__, function.__qualname__ = module, name
    return function


_FLOATS, _REBUILD = _named("torch", "FloatStorage"), _named("torch._utils", "_rebuild_tensor_v2")


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", _FLOATS, obj.key, "cpu", 0) if isinstance(obj, _Storage) else None


def save_torch(path, tree):
    """Writes nested dicts with float32 arrays; other leaves are pickled as they are."""
    stored = []

    def pickled(node):
        if isinstance(node, dict):
            return {key: pickled(value) for key, value in node.items()}
        if not isinstance(node, np.ndarray):
            return node
        stored.append(np.ascontiguousarray(node, "<f4"))
        strides = tuple(n // 4 for n in stored[-1].strides)
        return Call(_REBUILD, _Storage(str(len(stored) - 1)), 0, node.shape, strides, False, {})

    data = io.BytesIO()
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for function in (_FLOATS, _REBUILD):
        setattr(modules[function.__module__], function.__name__, function)
    with mock.patch.dict(sys.modules, modules):
        _Pickler(data, 2).dump(pickled(tree))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        for i, a in enumerate(stored):
            archive.writestr(f"archive/data/{i}", a.tobytes())
    return path
