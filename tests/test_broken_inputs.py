"""Broken inputs at every door: one line that says what was got, what was expected and how to mend it, nothing written.

Other files have tables of their own, of some 300 more: ``data/test_tables.py``, ``data/test_files.py``,
``data/test_import.py``, ``schema/test_fields.py``, ``schema/test_prompts.py``, ``config/test_settings.py``,
``training/test_bad_configs.py``, ``cli/test_plan.py``, ``cli/test_sample_command.py``, ``cli/test_train_command.py``.
``test_fuzz.py`` makes 2,000 at random.
"""

import datetime
import decimal
import importlib
import io
import os
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flowguide
from flowguide import config, fitting, paths, sampling, storage
from flowguide.cli import main
from flowguide.errors import UserError
from flowguide.networks import Network
from flowguide.schema import (
    Aligned,
    ClassMap,
    DataInfo,
    Images,
    Known,
    Label,
    Labels,
    Records,
    Series,
    Tokens,
    Vector,
    Vectors,
    prompts,
)
from flowguide.schema.fields import value
from flowguide.training import loop

N = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
WIDE = X.astype(np.float64)
PIXELS = RNG.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
KINDS = ["cat", "dog"] * (N // 2)
CODES = np.arange(N) % 2


def with_one(value: Any, a: np.ndarray = WIDE) -> np.ndarray:
    changed = a.copy()
    changed.reshape(N, -1)[3, 0] = value
    return changed


class Tensor:
    """As a tensor that is not on the CPU."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("use\nTensor.cpu() first")


class Frame:
    """As a data frame."""

    columns = ("kind", "angle")

    def __getitem__(self, name: str) -> Any:
        return {"kind": KINDS, "angle": X[:, 0]}[name]


def batch_of_7() -> Any:
    c = config.default()
    c.network, c.batch_size = {"name": "mlp", "width": 8, "depth": 1}, 7
    return c


# What fit takes: examples and condition, options, and words of the message, in order.
ARRAYS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "nothing": ((None,), {}, "got 'examples', a NoneType: give an array"),
    "a number": ((3,), {}, "got 'examples' … shape (), expected numbers or texts (N, ...)"),
    "an empty dict": (({},), {}, "got 'examples', a dict: give an array"),
    "a dict of matrices": (({"a": X, "b": X},), {}, "got 'a' of shape (40, 3) among several columns: give it alone"),
    "a missing class in a column": (
        ({"a": X[:, 0], "b": ["", *KINDS[1:]]},),
        {},
        "got no value of 'b' in row 0 of data",
    ),
    "an id in a column": (({"a": X[:, 0], "b": [f"id{i}" for i in range(N)]},), {}, "with another text in each row of"),
    "a column twice": (({"a": X[:, 0], "b": KINDS}, {"a": CODES}), {}, "a condition called 'a', as the examples are"),
    "a set": (({1, 2, 3},), {}, "got 'examples', a set: give an array"),
    "a generator": (((i for i in range(3)),), {}, "got 'examples', a generator: give an array"),
    "bytes": ((b"abc",), {}, "got 'examples' of dtype |S3"),
    "an empty list": (([],), {}, "shape (0,), expected numbers"),
    "an empty axis": ((X[:, :0],), {}, "shape (40, 0), expected numbers"),
    "one example": ((X[:1],), {}, "got a single row in data, expected at least 2: add some"),
    "all the same": ((np.ones((N, 3)),), {}, "got 'examples' with the same value in all rows"),
    "infinity": ((with_one(-np.inf),), {}, "got -inf in 'examples', row 3 of data: fill it in, or drop the row"),
    "half precision that overflows": (
        (with_one(np.inf, X.astype(np.float16)),),
        {},
        "got inf in 'examples', row 3 of data: fill",
    ),
    "too large for float32": (
        (with_one(1e39),),
        {},
        "got 1e+39 in 'examples', row 3 of data, too large for float32: give it in another unit",
    ),
    "too small for float32": ((WIDE * 1e-300,), {}, "got 'examples' from … float32 cannot tell apart: subtract"),
    "small for XLA": ((WIDE * 1e-42,), {}, "float32 cannot tell apart … another unit"),
    "close together": ((WIDE + 1e9,), {}, "numbers that float32 cannot tell apart: subtract their mean"),
    "close integers": ((2**62 + np.arange(N),), {}, "got 'examples' from 4611686018427387904 to 4611686018427387943"),
    "close unsigned": ((np.uint64(2**64 - 1) - np.arange(N, dtype=np.uint64),), {}, "float32 cannot tell apart"),
    "beyond 64 bits": (([[10**30 + i] for i in range(N)],), {}, "got 'examples' where row 39 is 1000000000000000000"),
    "complex": ((X * 1j,), {}, "dtype complex64 … expected numbers"),
    "masked": ((np.ma.masked_array(X, X > 0),), {}, "got 'examples' with masked values: fill them in, or drop"),
    "decimals": (([[decimal.Decimal("1.5")]] * N,), {}, "where row 0 is Decimal('1.5'), expected numbers"),
    "dates as objects": (([datetime.date(2020, 1, 1)] * N,), {}, "where row 0 is datetime.date(2020, 1, 1), expected"),
    "durations": ((np.arange(N).astype("timedelta64[s]"),), {}, "dtype timedelta64[s]"),
    "complex records": ((np.zeros(N, [("a", complex), ("b", int)]),), {}, "got 'a' of dtype complex128"),
    "a text among numbers": ((np.array([1.5, "a"] * (N // 2), object),), {}, "where row 0 is 1.5, expected numbers"),
    "numbers as texts": (([f"{i}.5" for i in range(N)],), {}, "such as '0.5' … give numbers for amounts"),
    "images of two sizes": (([PIXELS[0], PIXELS[1, :4]],), {}, "no array (rows of different shapes): give numbers of"),
    "images of two channels": ((PIXELS[..., :2],), {}, "(40, 8, 8, 2), expected images … transpose them, or give fl"),
    "channels first": ((np.moveaxis(PIXELS, -1, 1),), {}, "(40, 3, 8, 8), expected images … transpose"),
    "random keys": ((jax.random.split(jax.random.key(0), N),), {}, "no array (JAX array with PRNGKey"),
    "a tensor on a GPU": ((Tensor(),), {}, "no array (use Tensor.cpu() first): give"),
    "too few labels": ((X, KINDS[:-1]), {}, "got 39 values of 'label' for 40 of 'examples': give one for each"),
    "far too many labels": ((X, np.arange(10**5)), {}, "got 100,000 values of 'label' for 40"),
    "a label for all": ((X, "cat"), {}, "got 'condition' … shape (), expected"),
    "no label": ((X, {"a": None}), {}, "got 'a', a NoneType: give an array"),
    "a dict in a dict": ((X, {"a": {"b": KINDS}}), {}, "got 'a', a dict: give"),
    "a missing text": ((X, ["cat", None] * (N // 2)), {}, "where row 1 is None, expected numbers, or one text each"),
    "nan among texts": ((X, ["cat", float("nan")] * (N // 2)), {}, "where row 1 is nan, expected"),
    "a number among texts": ((X, ["cat", 1] * (N // 2)), {}, "where row 1 is 1, expected"),
    "an empty text": ((X, ["cat", ""] * (N // 2)), {}, "got no value of 'label' in row 1 of data: fill it in"),
    "a blank text": ((X, ["cat", " \n"] * (N // 2)), {}, "got no value of 'label' in row 1 of data"),
    "classes that differ by a blank": ((X, ["cat", "cat "] * (N // 2)), {}, "the same value in all rows"),
    "byte strings": ((X, [b"cat", b"dog"] * (N // 2)), {}, "dtype |S3"),
    "texts in a matrix": ((X, np.array(KINDS)[:, None]), {}, "got texts 'condition' of shape (40, 1), expected one"),
    "a text for each row": ((X, [f"id{i}" for i in range(N)]), {}, "with another text in each row … such as 'id0'"),
    "dates as texts": ((X, [f"2020-02-{i:02}" for i in range(N)]), {}, "give numbers for amounts and dates, or"),
    "tags and a text": ((X, [["a"], "b"] * (N // 2)), {}, "where row 0 is ['a'], expected"),
    "tags by number": ((X, [[1, 2], [3]] * (N // 2)), {}, "rows of different shapes"),
    "one tag for all": ((X, [["a"]] * N), {}, "the same value in all rows"),
    "the same vector for all": ((X, np.ones((N, 2))), {}, "got 'c' with the same value in all rows"),
    "the same flags for all": ((X, np.ones((N, 3), bool)), {}, "got 'c' with the same value in all rows"),
    "a vector too large": ((X, with_one(1e39)), {}, "got 1e+39 in 'c', row 3 of data, too large for float32"),
    "times in seconds": ((X, 1.7e9 + WIDE[:, 0]), {}, "got 'c' from 16999999 … subtract their mean"),
    "masked labels": ((X, np.ma.masked_array(CODES, CODES > 0)), {}, "got 'condition' with masked values"),
    "a larger image beside": ((PIXELS, PIXELS.repeat(2, 1)), {}, "(40, 16, 8, 3) beside examples of sides (8, 8)"),
    "a side that does not divide": ((PIXELS, PIXELS[:, :5, :5]), {}, "expected an array on the same axes"),
    "a class map of other sides": ((PIXELS, PIXELS[:, :3, :3, 0].astype(int)), {}, "sides that divide theirs"),
    "the same class map for all": ((PIXELS, np.zeros((N, 8, 8), int)), {}, "the same value in all rows"),
    "five axes": ((PIXELS, RNG.normal(size=(N, 2, 2, 2, 2))), {}, "or a series (N, L, k): reshape it"),
    "a series of NaN": ((PIXELS, np.full((N, 5, 3), np.nan)), {}, "got 'c' with nothing but NaN"),
    "NaN in a row of a series": ((PIXELS, RNG.normal(size=(N, 5, 3)) * [1, np.nan, 1]), {}, "got nan in 'c', row 0"),
    "a name with =": ((X, {"a=b": KINDS}), {}, "got 'a=b' as the name of a field … without = and , … rename it"),
    "a name with a comma": ((X, {"a,b": KINDS}), {}, "got 'a,b' as the name"),
    "a name with a line break": ((X, {"a\nb": KINDS}), {}, "got 'a\\nb' as the name"),
    "a name with a blank": ((X, {" a": KINDS}), {}, "got ' a' as the name"),
    "an empty name": ((X, {"": KINDS}), {}, "got '' as the name"),
    "a number as a name": ((X, {3: KINDS}), {}, "got 3 as the name of a field of data, expected a text"),
    "half a character": ((X, {"\ud800": KINDS}), {}, "got '\\ud800' as the name"),
    "the name of the examples": ((X, {"examples": KINDS}), {}, "called 'examples' … call it something else"),
    "the name of the known part": ((X, {"known": KINDS}), {"known": True}, "called 'known' … rename it"),
    "an empty path": (("",), {}, "got the path '', expected a file or folder"),
    "an address": (("gs://bucket/x.csv",), {}, "got the path 'gs://bucket/x.csv' … of this machine: copy"),
    "a path with a NUL": (("a\0b.csv",), {}, "which does not exist"),
    "a path of many letters": (("x" * 5000 + ".csv",), {}, "File name too long): give another path"),
    "a device": (("/dev/null",), {}, "neither a file nor a folder: give one"),
    "condition and path": (("x.csv", KINDS), {}, "beside the path x.csv: name columns"),
    "columns of arrays": ((X,), {"example": ("a",)}, "are for paths; give arrays as x and condition"),
    "minutes as text": ((X,), {"minutes": "5"}, "minutes takes a number or None; got '5'"),
    "minutes that are none": ((X,), {"minutes": float("nan")}, "minutes must be above 0; got nan"),
    "negative minutes": ((X,), {"minutes": -1}, "minutes must be above 0; got -1"),
    "minutes in a list": ((X,), {"minutes": [1]}, "minutes takes a number or None; got [1]"),
    "true minutes": ((X,), {"minutes": True}, "minutes takes a number or None; got True"),
    "a folder by number": ((X,), {"workdir": 3}, "workdir takes text or a path or None; got 3"),
    "a folder without a name": ((X,), {"workdir": ""}, "expected a file or folder, and got the name ''"),
    "a folder elsewhere": ((X,), {"workdir": "http://x/y"}, "or s3://BUCKET/NAME; got the address http://x/y"),
    "a config by name": (
        (X,),
        {"config": "avatars"},
        "config takes what flowguide.config.default() returns … 'avatars'",
    ),
    "a config as a dict": ((X,), {"config": {}}, "config takes what … changed; got {}"),
    "a batch of 7": ((X,), {"config": batch_of_7()}, "batch_size 7 cannot be shared by 8 devices … multiple of 8"),
    "a U-Net for vectors": ((X,), {"config": config.default()}, "network 'unet' for data (3,) … use mlp"),
    "known by text": ((X,), {"known": "yes"}, "known takes True or False; got 'yes'"),
    "a name by number": ((X,), {"name": 3}, "name takes text; got 3"),
    "columns in one text": (("x.csv",), {"fields": "kind"}, "fields takes texts or None; got 'kind'"),
    "half a pixel": (("x.csv",), {"image_size": 2.5}, "image_size takes a whole number or None; got 2.5"),
    "no pixel": (("x.csv",), {"image_size": 0}, "got image_size=0, expected a side in pixels, 1 to 8192"),
    "a billion pixels": (("x.csv",), {"image_size": 10**5}, "got image_size=100000, expected a side"),
}

P = {"w": jnp.ones(3)}


def network(init: Any, velocity: Any) -> Network:
    return Network(init, velocity)


# Networks of the user's own: init and velocity.
NETWORKS: dict[str, tuple[Any, str]] = {
    "a number": (3, "network takes as_network(...) of an NNX module, or Network(init, velocity) … got 3"),
    "a function": (len, "network takes as_network"),
    "another shape": (
        Network(lambda k: P, lambda p, t, x, c: x[:, :2]),
        "float32 (2, 2) for x float32 (2, 3), expected",
    ),
    "a number for a batch": (network(lambda k: P, lambda p, t, x, c: x.sum()), "returns float32 () for x"),
    "integers": (network(lambda k: P, lambda p, t, x, c: x.astype(int)), "returns int32 (2, 3) … cast what it returns"),
    "half precision": (network(lambda k: P, lambda p, t, x, c: x.astype(jnp.bfloat16)), "returns bfloat16 (2, 3)"),
    "complex": (network(lambda k: P, lambda p, t, x, c: x + 1j), "returns complex64"),
    "a tuple": (network(lambda k: P, lambda p, t, x, c: (x,)), "returns (ShapeDtypeStruct"),
    "nothing": (network(lambda k: P, lambda p, t, x, c: None), "returns None for x float32 (2, 3)"),
    "t not broadcast": (
        network(lambda k: P, lambda p, t, x, c: t * x),
        "fails (ValueError: Incompatible shapes … try it",
    ),
    "NumPy inside": (
        network(lambda k: P, lambda p, t, x, c: np.tanh(np.asarray(x))),
        "fails (TracerArrayConversionErr",
    ),
    "an unknown field": (network(lambda k: P, lambda p, t, x, c: c.value["hat"] * x), "fails (KeyError: 'hat')"),
    "too few arguments": (network(lambda k: P, lambda p, t, x: x), "fails (TypeError: … takes 3 positional"),
    "no parameters": (network(lambda k: {}, lambda p, t, x, c: x), "init(key) … returns {}, expected a nested dict"),
    "whole parameters": (
        Network(lambda k: {"w": jnp.ones(3, int)}, lambda p, t, x, c: x),
        "expected a nested dict of fl",
    ),
    "parameters for init": (network(P, lambda p, t, x, c: x), "init(key) of the network fails (TypeError"),
}


def saved(save: Any, *arguments: Any, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arguments, **arrays)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    return saved(np.savez, **arrays)


def npy(a: Any) -> bytes:
    return saved(np.save, a)


def parquet(**columns: Any) -> bytes:
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    return saved(lambda file: pq.write_table(pa.table(columns), file))


HEAD = "a,b,kind\n"
ROWS = "".join(f"{a:.4f},{b:.4f},{kind}\n" for (a, b), kind in zip(X[:20, :2], KINDS, strict=False))
TABLE = HEAD + ROWS
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"
FIRST = WIDE[:, 0].tolist()


def numbered(cell: str) -> str:
    return "a,b\n" + "".join(f"{i / 7:.3f},{cell.format(i=i)}\n" for i in range(N))


# What a file holds: its name, content, options of fit, words.
FILES: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "no byte": ("t.csv", b"", {}, "without rows: expected names in line 1 and values below"),
    "no byte of npz": ("t.npz", b"", {}, "cannot be read (ValueError: it is no .npz file): repair it"),
    "no byte of npy": ("t.npy", b"", {}, "it is no .npy file"),
    "no byte of parquet": ("t.parquet", b"", {}, "cannot be read (ArrowInvalid"),
    "utf-16 without its mark": (
        "t.csv",
        TABLE.encode("utf-16-le"),
        {},
        "got a NUL character in line 1 … save it as UTF",
    ),
    "latin-1": (
        "t.csv",
        TABLE.replace("cat", "caf\xe9").encode("latin-1"),
        {},
        "as text ('utf-8' codec … save it as UTF-8",
    ),
    "a NUL": ("t.csv", TABLE + "1,2,a\0b\n", {}, "got a NUL character in line 22"),
    "a picture called csv": ("t.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), {}, "cannot be read as text"),
    "a quote that opens": ("t.csv", HEAD + '1,2,"cat\n' + ROWS, {}, "whose line 2 cannot be read … correct its quotes"),
    "a quote at the end": ("t.csv", TABLE + '1,2,"cat', {}, "whose line 22 cannot be read"),
    "a quote in the names": ("t.csv", 'a,"b,kind\n' + ROWS, {}, "whose line 1 cannot be read"),
    "text after a quote": ("t.csv", TABLE + '1,2,"cat"s\n', {}, "line 22 cannot be read (',' expected after"),
    "a cell without end": ("t.csv", TABLE + "1,2," + "x" * 200_000, {}, "whose line 22 cannot be read (field larger"),
    "a row after a blank line": ("t.csv", "\n" + HEAD + "\n" + ROWS + "\n1,2\n", {}, "got 2 values in line 25"),
    "a row after a broken cell": ("t.csv", HEAD + '1,2,"c\nt"\n' + ROWS + "1\n", {}, "got 1 values in line 24"),
    "a comment first": ("t.csv", "# mine\n" + TABLE, {}, "got 3 values in line 2 … expected 1: # mine"),
    "no names": ("t.csv", ROWS, {}, "got the number … in line 1 … expected names of the columns: add them"),
    "names that differ by a blank": (
        "t.csv",
        "a,a ,kind\n" + ROWS,
        {},
        "names 'a', 'a', 'kind', expected different ones",
    ),
    "an index without a name": ("t.csv", ",a\n0,1.5\n1,2.5\n", {}, "no name for column 1 … to_csv(index=False)"),
    "a comma after each row": (
        "t.csv",
        HEAD + ROWS.replace("\n", ",\n"),
        {},
        "got 4 values in line 2 … expected 3: a, b",
    ),
    "names alone": ("t.csv", "a,b", {}, "without rows"),
    "a single row": ("t.csv", HEAD + "1,2,cat\n", {}, "got a single row in t"),
    "a web page": (
        "t.csv",
        "<html>\n<p>not found</p>\n</html>",
        {},
        "one column of texts, '<html>', expected names and",
    ),
    "a pointer": ("t.csv", POINTER, {}, "with one column of texts, 'version https://git-lfs"),
    "a pointer to arrays": ("t.npz", POINTER, {}, "it is no .npz file"),
    "bars between cells": (
        "t.csv",
        TABLE.replace(",", "|"),
        {},
        "one column of texts, 'a|b|kind' … separated by commas",
    ),
    "blanks between cells": ("t.csv", TABLE.replace(",", " "), {}, "one column of texts, 'a b kind'"),
    "commas in a tsv": ("t.tsv", TABLE, {}, "one column of texts, 'a,b,kind' … or tabs: convert it"),
    "decimal commas in quotes": (
        "t.csv",
        'a,b\n"0,5","1,5"\n"1,5","2,5"\n',
        {},
        "no column of numbers … '0,5' in 'a' is a te",
    ),
    "thousands with commas": ("t.csv", numbered('"1,{i:03}"'), {}, "got 'b' with another text in each row … '1,000'"),
    "percents": ("t.csv", numbered("{i}%"), {}, "with another text in each row of t, such as '0%'"),
    "dates": ("t.csv", numbered("2020-01-{i}"), {}, "such as '2020-01-0' … give numbers for amounts and dates"),
    "NA": ("t.csv", TABLE + "NA,2,cat\n", {}, "got 'NA' in 'a', line 22 … where most values are numbers: correct it"),
    "a complex number": ("t.csv", TABLE + "1+2j,2,cat\n", {}, "got '1+2j' in 'a', line 22"),
    "1e400": ("t.csv", TABLE + "1e400,2,cat\n", {}, "got inf in 'a', line 22"),
    "1e39": ("t.csv", TABLE + "1e39,2,cat\n", {}, "got 1e+39 in 'a', line 22 … too large for float32"),
    "numbers close together": (
        "t.csv",
        numbered("1000000000{i:02}"),
        {},
        "float32 cannot tell apart",
    ),
    "half the cells empty": ("t.csv", TABLE + ",2,cat\n" * 30, {}, "got no value of 'a' in line 22"),
    "an empty class": (
        "t.csv",
        TABLE + "1,2,\n",
        {},
        "got no value of 'kind' in line 22 … fill it in, or drop the row",
    ),
    "a name with =": (
        "t.csv",
        TABLE.replace("kind", "k=d"),
        {},
        "got 'k=d' as the name of a field of t … rename it, or",
    ),
    "a name with a comma": ("t.csv", TABLE.replace("kind", '"k,d"'), {}, "got 'k,d' as the name"),
    "a field misspelt": (
        "t.csv",
        TABLE,
        {"fields": ("kidn",)},
        "got column 'kidn', did you mean 'kind'?, expected columns",
    ),
    "a field twice": ("t.csv", TABLE, {"fields": ("kind", "kind")}, "got the column 'kind' twice: name it once"),
    "an example twice": ("t.csv", TABLE, {"example": ("a", "a")}, "got the column 'a' twice"),
    "nothing left": (
        "t.csv",
        TABLE,
        {"fields": ("a", "b", "kind")},
        "no column of numbers or images left for the exam",
    ),
    "a size without images": ("t.csv", TABLE, {"image_size": 8}, "got image_size=8 … has no image files: leave it out"),
    "json": ("t.json", "{}", {}, "expected a file of .npz, .npy, .csv, .tsv, .parquet, or a folder"),
    "packed": ("t.csv.gz", b"\x1f\x8b", {}, "expected a file of .npz"),
    "no suffix": ("t", "abc", {}, "expected a file of .npz"),
    "a csv called npz": ("t.npz", TABLE, {}, "it is no .npz file"),
    "a csv called npy": ("t.npy", TABLE, {}, "it is no .npy file"),
    "a csv called parquet": ("t.parquet", TABLE, {}, "cannot be read (ArrowInvalid"),
    "a bit changed": ("t.npz", npz(x=X)[:200] + b"?" + npz(x=X)[201:], {}, "cannot be read (BadZipFile: Bad CRC-32"),
    "labels too few": ("t.npz", npz(x=X, y=CODES[1:]), {}, "got 39 values of 'y' for 40 rows … give one for each"),
    "labels far too many": ("t.npz", npz(x=X, y=np.arange(10**4)), {}, "got 10,000 values of 'y' for 40 rows"),
    "scalars alone": ("t.npz", npz(a=np.float32(3)), {}, "which has no columns"),
    "complex arrays": ("t.npz", npz(x=X * 1j), {}, "t.npz: got 'x' of dtype complex64"),
    "no row": ("t.npz", npz(x=X[:0]), {}, "t.npz: got 'x' of dtype float32 and shape (0, 3)"),
    "byte strings": ("t.npz", npz(x=X, y=np.array([b"a", b"b"] * 20)), {}, "got 'y' of dtype |S1 and shape (40,)"),
    "texts as examples": ("t.npz", npz(x=np.array(KINDS)), {}, "got texts in 'x', row 0 of … name the examples"),
    "code in a header": (
        "t.npy",
        b"\x93NUMPY\x01\x00v\x00" + b"exit()".ljust(117) + b"\n",
        {},
        "cannot be read (ValueErr",
    ),
    "half a file": ("t.npy", npy(X)[:-50], {}, "mmap length is greater than file size"),
    "half a header": ("t.npy", npy(X)[:20], {}, "cannot be read (ValueError: EOF: reading array header"),
    "complex records": ("t.npy", npy(np.zeros(3, [("a", complex)])), {}, "t.npy: got 'a' of dtype complex128"),
    "names of images": (
        "t.csv",
        "image,kind\n0.png,1\n1.png,2\n",
        {},
        "got texts in 'image', line 2 of … in a metadata.csv",
    ),
    "a table of texts": ("t.csv", "a,b\nx,y\ny,x\n", {}, "('x' in 'a' is a text): name them"),
    "dates in an array": ("t.npy", npy(np.arange(3).astype("datetime64[s]")), {}, "of dtype datetime64[s]"),
    "large numbers in an array": ("t.npy", npy(WIDE * 1e39), {}, "in 'x', row 0 of … too large for float32"),
    "a null": ("t.parquet", parquet(a=[None, *FIRST[1:]], kind=KINDS), {}, "got no value of 'a' in row 0: fill it in"),
    "lists of two lengths": (
        "t.parquet",
        parquet(a=FIRST, v=[[1.0], [1.0, 2.0]] * 20),
        {},
        "'v' … rows of different sh",
    ),
    "a null in a list": ("t.parquet", parquet(a=FIRST, v=[[1.0, None]] * N), {}, "'v' where row 0 is None"),
    "records in a column": (
        "t.parquet",
        parquet(a=FIRST, v=[{"u": 1}] * N),
        {},
        "'v' where row 0 is {'u': 1}, expected",
    ),
    "times in a column": (
        "t.parquet",
        parquet(a=FIRST, v=[datetime.datetime(2020, 1, 1)] * N),
        {},
        "is datetime.datetime(2",
    ),
    "binary in a column": ("t.parquet", parquet(a=FIRST, v=[b"abc"] * N), {}, "'v' of dtype |S3"),
}


def picture(height: int = 8, width: int = 8, mode: str = "RGB", form: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    return saved(lambda file: image.save(file, form, **options))


PNG = picture()
DEEP = saved(lambda file: Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(file, "PNG"))
CLASSES: dict[str, str | bytes] = {f"{'ab'[i % 2]}/{i}.png": PNG for i in range(8)}
LIST = "file_name,kind\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
LISTED: dict[str, str | bytes] = {f"{i}.png": PNG for i in range(8)}


def splits(train: str | bytes, test: str | bytes, suffix: str = "csv") -> dict[str, str | bytes]:
    return {f"train.{suffix}": train, f"test.{suffix}": test}


# What a folder holds: contents by name, options of fit, words.
FOLDERS: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str]] = {
    "no image": ({"a/x.txt": "hi"}, {}, "without images (.png, .jpg"),
    "no byte of an image": ({**CLASSES, "a/x.png": b""}, {}, "x.png, an image that cannot be read (it is none of PNG"),
    "a page called jpg": (
        {**CLASSES, "a/x.jpg": "<html>"},
        {},
        "x.jpg, an image that cannot be read … repair or remove",
    ),
    "half an image": ({**CLASSES, "a/0.png": picture(64, 64)[:900]}, {"image_size": 8}, "a/0.png … truncated"),
    "a pointer": ({**CLASSES, "a/x.png": POINTER}, {}, "x.png, an image that cannot be read"),
    "a svg called png": ({**CLASSES, "a/x.png": "<svg/>"}, {}, "x.png, an image that cannot be read"),
    "16 bits": ({**CLASSES, "a/x.png": DEEP}, {}, "x.png … more than 8 bits a channel; expected 8: convert it"),
    "too many pixels": (
        {**CLASSES, "a/x.png": saved(lambda file: Image.new("1", (8200, 8200)).save(file, "PNG"))},
        {"image_size": 8},
        "8200 x 8200 pixels; expected at most",
    ),
    "another size": ({**CLASSES, "a/x.png": picture(8, 9)}, {}, "of 9 x 8 pixels … expected one size: give image_size"),
    "turned to another size": (
        {
            **CLASSES,
            "a/0.png": picture(8, 9, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        },
        {},
        "a/0.png of 8 x 9",
    ),
    "tiff": ({**CLASSES, "a/x.tiff": b"II*\0"}, {}, "x.tiff, expected images of .png … convert it, or move it away"),
    "heic": ({**CLASSES, "b/x.HEIC": b""}, {}, "x.HEIC, expected images of .png"),
    "a loose image": ({**CLASSES, "x.png": PNG}, {}, "x.png beside folders of classes: move it into one"),
    "one image": ({"a/0.png": PNG}, {}, "got a single row in"),
    "a size below 1": (CLASSES, {"image_size": -1}, "got image_size=-1, expected a side"),
    "no image to train on": ({"train/a/x.txt": "hi", "test/a/0.png": PNG}, {}, "train without images"),
    "a new class in the test": (
        {**{f"train/{k}": v for k, v in CLASSES.items()}, "test/a/0.png": PNG, "test/c/0.png": PNG},
        {},
        "got label='c' in … test/c/0.png, which is not among the classes to train on, a, b: correct it",
    ),
    "one class in the test": (
        {**{f"train/{k}": v for k, v in CLASSES.items()}, "test/a/0.png": PNG},
        {},
        "got no 'label' with … test/a/0.png, to validate with: training has that column",
    ),
    "another size in the test": (
        {**{f"train/{k}": v for k, v in CLASSES.items()}, "test/a/0.png": picture(9, 9), "test/b/0.png": picture(9, 9)},
        {},
        "got image (9, 9, 3) in … test/a/0.png, expected image (8, 8, 3), as to train on",
    ),
    "grey in the test": (
        {
            **{f"train/{k}": v for k, v in CLASSES.items()},
            "test/a/0.png": picture(mode="L"),
            "test/b/0.png": picture(mode="L"),
        },
        {},
        "got image (8, 8, 1) in … expected image (8, 8, 3)",
    ),
    "a column less in the test": (splits(TABLE, "a,kind\n1.5,cat\n"), {}, "got no 'b' with line 2 … to validate with"),
    "a text in the test": (
        splits(TABLE, HEAD + "1.5,many,cat\n"),
        {},
        "got texts in 'b' as examples, line 2 of … where training has numbers: correct them",
    ),
    "nan in the test": (splits(TABLE, HEAD + "1.5,nan,cat\n"), {}, "got nan in 'b', line 2 of"),
    "a class by number in the test": (splits(TABLE, HEAD + "1.5,2.5,3\n"), {}, "got kind='3' in line 2 … cat, dog"),
    "a text in a vector of the test": (
        splits("a,b\n1.5,2.5\n2.5,1.5\n", "a,b\n1.5,x\n"),
        {"example": ("a",)},
        "got texts in 'b' of test, line 2 … expected what training has there, vector (1,)",
    ),
    "a new tag in the test": (
        splits("a,t\n1.5,p|q\n2.5,p\n", "a,t\n1.5,p|r\n"),
        {},
        "unknown value 'r' of 't': there are p, q",
    ),
    "other sizes in the test": (splits(npz(x=X), npz(x=X[:, :2]), "npz"), {}, "(2,) in row 0 … (3,), as to train on"),
    "floats for images in the test": (
        splits(npz(x=PIXELS), npz(x=PIXELS / 255), "npz"),
        {},
        "got points (8, 8, 3) in row 0 … expected image (8, 8, 3)",
    ),
    "other vectors in the test": (splits(npz(x=X, c=X), npz(x=X, c=X[:, :2]), "npz"), {}, "got float32 (40, 2) in 'c'"),
    "infinity in the test": (splits(npz(x=X), npz(x=X * np.inf), "npz"), {}, "in 'x', row 0 of … test.npz: fill it in"),
    "new classes in a map of the test": (
        splits(npz(x=PIXELS, c=PIXELS[..., 0] % np.int64(3)), npz(x=PIXELS, c=PIXELS[..., 0] % np.int64(2) + 3), "npz"),
        {"example": ("x",)},
        "got c, row 0 of … from 3 to 4, expected classes 0 to 2",
    ),
    "an empty list": ({**LISTED, "metadata.csv": ""}, {}, "metadata.csv without rows"),
    "a list of names alone": ({**LISTED, "metadata.csv": "file_name,kind\n"}, {}, "metadata.csv without rows"),
    "a file that is gone": (
        {**LISTED, "metadata.csv": LIST + "gone.png,a\n"},
        {},
        "'gone.png' in line 10 … does not exist",
    ),
    "a folder in the list": ({**LISTED, "metadata.csv": LIST + ".,a\n"}, {}, "got '.' in line 10 of … does not exist"),
    "no file in the list": ({**LISTED, "metadata.csv": LIST + ",a\n"}, {}, "got '' in line 10 of"),
    "a table in the list": (
        {**LISTED, "metadata.csv": LIST + "metadata.csv,a\n"},
        {},
        "metadata.csv, an image that cannot",
    ),
    "no value in the list": ({**LISTED, "metadata.csv": LIST + "0.png,\n"}, {}, "got no value of 'kind' in … 0.png"),
    "a column called image": (
        {**LISTED, "metadata.csv": LIST.replace("kind", "image")},
        {},
        "got 'file_name' in … called 'image', as another column is: rename it",
    ),
    "two columns of images": (
        {**LISTED, "metadata.csv": LIST.replace("kind", "image_file_name")},
        {},
        "got 'image_file_name' in … called 'image'",
    ),
    "a mask twice": (
        {**LISTED, "metadata.csv": "file_name,mask_file_name,mask\n0.png,1.png,2\n1.png,0.png,3\n"},
        {},
        "got 'mask_file_name' in … called 'mask', as another column is",
    ),
    "one class for all": (
        {**LISTED, "metadata.csv": LIST.replace(",b", ",a")},
        {},
        "'kind' with the same value in all",
    ),
}


class Part:
    """A split of a Hugging Face data set, with the kinds of its columns."""

    def __init__(self, **columns: Any):
        self.columns = columns
        self.features = {name: type(kind, (), {"names": ["x", "y"]})() for name, (kind, _) in columns.items()}

    def __getitem__(self, name: str) -> Any:
        return self.columns[name][1]


def cut() -> Any:
    raise KeyError("_data_files")


def images_of(*contents: bytes | None) -> list[Any]:
    return [content and Image.open(io.BytesIO(content)) for content in contents]


HUGGING_FACE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "damaged": (cut, {}, "cannot be read (KeyError: '_data_files'): repair it"),
    "no split to train on": (
        lambda: {"foo": Part(a=("Value", FIRST))},
        {},
        "with the splits foo, expected one called train",
    ),
    "a missing number": (lambda: Part(a=("Value", [None, *FIRST])), {}, "got no value of 'a' in row 0: fill it in"),
    "a hidden class": (
        lambda: Part(a=("Value", FIRST), label=("ClassLabel", [0, -1] * 20)),
        {},
        "got no value of 'label' in row 1",
    ),
    "an image missing": (lambda: Part(image=("Image", images_of(PNG, None))), {}, "got no value of 'image' in row 1"),
    "images of two sizes": (
        lambda: Part(image=("Image", images_of(PNG, picture(9, 9)))),
        {},
        "got images of 8 x 8, 9 x 9 pixels … give image_size",
    ),
    "images of 16 bits": (
        lambda: Part(image=("Image", images_of(PNG, DEEP))),
        {},
        "got an image that cannot be used in",
    ),
    "a size without images": (lambda: Part(a=("Value", FIRST)), {"image_size": 8}, "which has no image files: leave"),
}

TRAIN = ["train", "--data=t.csv", "--workdir=run"]
IMPORT = ["data", "import", "t.csv"]
# Arguments of the command, in a folder with t.csv, bad.csv and an empty folder; words.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "data without a name": (["train", "--data=", "--workdir=run"], "--data takes a file, a folder … got '': give one"),
    "data that are not there": (["train", "--data=none.csv", "--workdir=run"], "got none.csv, which does not exist"),
    "a set misspelt": (
        ["train", "--data=avatarz", "--workdir=run"],
        "unknown data set 'avatarz' … did you mean avatars?",
    ),
    "broken data": (["train", "--data=bad.csv", "--workdir=run"], "got 2 values in line 2 of bad.csv, expected 3"),
    "an empty folder": (["train", "--data=empty/", "--workdir=run"], "got empty without images"),
    "a bucket": (["train", "--data=gs://b/x.csv", "--workdir=run"], "got the path 'gs://b/x.csv'"),
    "no folder": (["train", "--data=t.csv"], "expected --workdir=DIR"),
    "a folder without a name": (
        ["train", "--data=t.csv", "--workdir="],
        "expected a file or folder, and got the name ''",
    ),
    "no data": (["train", "--workdir=run"], "expected --config=NAME … or --data=PATH"),
    "no minutes": ([*TRAIN, "--minutes=0"], "minutes must be above 0; got 0.0"),
    "minutes as text": ([*TRAIN, "--minutes=abc"], "flag --minutes=abc: could not convert string to float"),
    "minutes that are none": ([*TRAIN, "--minutes=nan"], "minutes must be above 0; got nan"),
    "no field": ([*TRAIN, "--fields="], "--fields takes columns, as a,b; got '': name some, or leave --fields out"),
    "no example": ([*TRAIN, "--example="], "--example takes columns, as a,b"),
    "a field misspelt": ([*TRAIN, "--fields=kidn"], "got column 'kidn', did you mean 'kind'?"),
    "a field twice": ([*TRAIN, "--fields=kind,kind"], "got the column 'kind' twice"),
    "none and a field": ([*TRAIN, "--fields=none,kind"], "got column 'none', expected columns of t: a, b, kind"),
    "an example misspelt": ([*TRAIN, "--example=a,kidn"], "got column 'kidn', did you mean 'kind'?"),
    "an example as field": ([*TRAIN, "--example=a", "--fields=a"], "got 'a' as an example and as a field"),
    "a size without images": ([*TRAIN, "--image_size=8"], "got image_size=8 for t.csv, which has no image files"),
    "half a pixel": ([*TRAIN, "--image_size=1.5"], "--image_size takes a side in pixels; got '1.5'"),
    "a trace backwards": ([*TRAIN, "--profile_steps=5,3"], "expected profile_steps between 1 and"),
    "a batch of 7": ([*TRAIN, "--config.batch_size=7"], "batch_size 7 cannot be shared by 8 devices"),
    "no learning": ([*TRAIN, "--config.lr=nan"], "lr must be finite and above 0; got nan"),
    "half a step": ([*TRAIN, "--config.steps=1.5"], "invalid literal for int"),
    "a setting misspelt": ([*TRAIN, "--config.stepz=5"], "the config has no setting 'stepz'"),
    "a network misspelt": ([*TRAIN, "--config.network=unat"], "unknown network 'unat', did you mean 'unet'?"),
    "mirrored vectors": ([*TRAIN, "--config.flip=True"], "flip mirrors images … set flip to False"),
    "data twice": ([*TRAIN, "--config.data.path=x"], "--data says which data; got --config.data.path too"),
    "describe nothing": (["data", "describe"], "expected describe and one name; got 'describe'"),
    "describe no name": (["data", "describe", ""], "got the path '', expected a file or folder"),
    "describe what is not there": (["data", "describe", "none.csv"], "got none.csv, which does not exist"),
    "describe broken data": (["data", "describe", "bad.csv"], "got 2 values in line 2 of bad.csv"),
    "describe a device": (["data", "describe", "/dev/null"], "neither a file nor a folder"),
    "describe no field": (["data", "describe", "t.csv", "--fields="], "--fields takes columns"),
    "an action misspelt": (["data", "impotr", "t.csv", "x"], "got 'impotr', did you mean 'import'?"),
    "import without a name": ([*IMPORT], "expected import and one path and one name"),
    "import under no name": ([*IMPORT, "", "--data_dir=sets"], "got the name '', expected lower-case letters"),
    "import under a long name": ([*IMPORT, "a" * 300, "--data_dir=sets"], "expected lower-case letters, digits and _"),
    "import under two lines": ([*IMPORT, "x\ny", "--data_dir=sets"], "got the name 'x\\ny', expected"),
    "import into no folder": ([*IMPORT, "mine", "--data_dir="], "expected a file or folder, and got the name ''"),
    "import into a file": (
        [*IMPORT, "mine", "--data_dir=t.csv"],
        "mine cannot be written to t.csv/mine … give another data",
    ),
    "import broken data": (
        ["data", "import", "bad.csv", "mine", "--data_dir=sets"],
        "got 2 values in line 2 of bad.csv",
    ),
    "plan for nothing": (["plan"], "expected --config=NAME … or --data=PATH"),
    "plan for no name": (["plan", "--data="], "--data takes a file, a folder"),
    "plan for broken data": (["plan", "--data=bad.csv"], "got 2 values in line 2 of bad.csv"),
    "plan for no field": (["plan", "--data=t.csv", "--fields="], "--fields takes columns"),
    "plan for an infinite chip": (["plan", "--data=t.csv", "--peak=inf"], "--peak is a positive number; got inf"),
    "sample without a run": (["sample", "--workdir=empty"], "no run in empty: expected a --workdir that train"),
    "sample from a file": (["sample", "--workdir=t.csv"], "no run in t.csv"),
    "sample from no name": (["sample", "--workdir="], "expected a file or folder, and got the name ''"),
}

ALL = {
    "kind": Label(("cat", "dog", "a=b")),
    "tags": Labels(("red", "tall")),
    "pos": Vector(2),
    "cap": Tokens(3, ("", "a", "hat", "red")),
    "audio": Series(3, 2),
    "text": Series(3, 2, encoder="own_package.encoders:encode"),
    "edges": Aligned(Images((4, 4, 1))),
    "depth": Aligned(Vectors((4, 4, 1))),
    "map": ClassMap((4, 4), ("0", "1", "2")),
    "known": Known(Images((4, 4, 3))),
}
ROW = {"known": Known(Vectors((3,), names=("a", "b", "c")))}
RECORDS = Records(("age", "city"), ((), ("a", "b")))
MIXED = {"known": Known(RECORDS)}
# Conditions of a model with a field of each kind, or of the known columns of a table; files are in the current folder.
CONDITIONS: dict[str, tuple[Any, Any, str]] = {
    "no value": (ALL, "kind", "got 'kind', expected name=value with a name of kind, tags"),
    "an empty class": (ALL, "kind=", "unknown value '' of 'kind': there are cat"),
    "no name": (ALL, "=cat", "unknown field ''"),
    "twice": (ALL, "kind=cat,kind=dog", "'kind' is given twice … give it once"),
    "semicolons": (ALL, "kind=cat;tags=red", "unknown value 'cat;tags=red' of 'kind'"),
    "capitals": (ALL, "KIND=cat", "unknown field 'KIND'"),
    "a class number too large": (ALL, "kind=3", "unknown value '3' of 'kind'"),
    "a fraction of a class": (ALL, {"kind": 1.0}, "field 'kind' takes a name or a number from 0 to 2; got 1.0"),
    "a true class": (ALL, {"kind": True}, "field 'kind' takes a name or a number … got True"),
    "a long prompt": (ALL, "a" * 5000, "got 'aaaa … expected name=value"),
    "an unknown tag": (ALL, "tags=red|blue", "unknown value 'blue' of 'tags'"),
    "tags in a list": (ALL, {"tags": ["red", "tall"]}, "takes names with | between them, or 2 times True or False"),
    "two of a tag": (ALL, {"tags": [2, 0]}, "or 2 times True or False; got [2 0]"),
    "too many numbers": (ALL, "pos=1 2 3", "field 'pos' takes 2 finite numbers; got '1 2 3'"),
    "numbers with commas": (ALL, "pos=1,2", "'pos' takes 2 numbers separated by spaces; got '1,2'"),
    "a number too large": (ALL, {"pos": [1.0, 1e39]}, "field 'pos' takes 2 finite numbers"),
    "a complex number": (ALL, {"pos": [1j, 2j]}, "field 'pos' takes 2 finite numbers"),
    "ragged numbers": (ALL, {"pos": [[1, 2], [3]]}, "field 'pos' takes 2 finite numbers; got [[1, 2], [3]]"),
    "masked numbers": (
        ALL,
        {"pos": np.ma.masked_array([1.0, 2.0], np.array([False, True]))},
        "field 'pos' takes 2 finite numbers",
    ),
    "an unknown word": (ALL, "cap=a rde hat", "unknown word 'rde' in 'a rde hat', did you mean 'red'?"),
    "too many words": (ALL, "cap=a red hat hat", "got 4 words in 'a red hat hat', expected at most 3: shorten it"),
    "word numbers too large": (ALL, {"cap": [9, 9, 9]}, "'cap' takes words, or 3 numbers from 0 to 3; got 9"),
    "no file": (ALL, "audio=none.npy", "'audio' takes a file .npy; 'none.npy' cannot be read (there is no such file)"),
    "a folder": (ALL, "edges=.", "'edges' takes an image file; '.' cannot be read (there is no such file)"),
    "a pipe": (ALL, "audio=pipe", "'pipe' cannot be read (there is no such file)"),
    "a pickle": (ALL, "audio=pickle.npy", "cannot be read (Object arrays cannot be loaded"),
    "an archive": (ALL, "audio=z.npz", "cannot be read (it is no .npy file)"),
    "a picture for numbers": (
        ALL,
        "depth=small.png",
        "'depth' takes a file .npy; 'small.png' cannot be read (it is no",
    ),
    "numbers for a picture": (ALL, "edges=nan.npy", "'edges' takes an image file; 'nan.npy' cannot be read"),
    "a picture of another size": (
        ALL,
        "known=small.png",
        "of shape (4, 4, 3); got uint8 (3, 3, 3) … crop or resize it",
    ),
    "a picture of 16 bits": (ALL, "edges=deep.png", "'deep.png' cannot be read (it has more than 8 bits"),
    "NaN in a file": (ALL, "depth=nan.npy", "field 'depth' takes … got nan in it"),
    "too large in a file": (ALL, "depth=large.npy", "field 'depth' takes … got inf in it"),
    "a class that no map has": (ALL, "map=seven.png", "classes 0 to 2 of (4, 4); got 7"),
    "a series of another length": (ALL, {"audio": np.zeros((2, 2))}, "an array (3, 2) … got float64 (2, 2)"),
    "a text that code of others embeds": (ALL, "text=a hat", "embedded by 'own_package.encoders:encode', code outside"),
    "no file for a text": (ALL, "text=none.npy", "'text' takes a file .npy; 'none.npy' cannot be read"),
    "an embedding of another length": (ALL, {"text": np.zeros((2, 2))}, "takes a text, a file .npy or an array (3, 2)"),
    "an embedding too large for float16": (ALL, {"text": np.full((3, 2), 1e6)}, "got NaN or infinity in between"),
    "a series too large for float32": (ALL, {"audio": np.full((3, 2), 1e39)}, "got NaN or infinity in between"),
    "NaN within a series": (ALL, {"audio": np.array([[1, 1], [np.nan] * 2, [1, 1]])}, "got NaN or infinity in between"),
    "an array of another size": (ALL, {"edges": np.zeros((5, 5))}, "an array (4, 4, 1); got float64 (5, 5)"),
    "pixels above 255": (ALL, {"edges": np.full((4, 4), 300)}, "of pixels 0 to 255; got 300 to 300"),
    "pixels below 0": (ALL, {"known": np.full((4, 4, 3), -1.0)}, "of pixels 0 to 255; got -1 to -1"),
    "fractions in a map": (ALL, {"map": np.zeros((4, 4))}, "classes 0 to 2 of (4, 4); got float64 (4, 4)"),
    "a number for all fields": (ALL, 3, "got 3, and the data have the fields kind, tags … say which"),
    "nothing": (ALL, None, "got None, expected a prompt"),
    "an object": (ALL, object(), "got <object object … expected a prompt"),
    "three for two": (ALL, ["kind=cat"] * 3, "got 3 conditions for 2 samples: give one for all, or one for each"),
    "three rows for two": (ALL, {"kind": [0, 1, 0]}, "got 3 values of 'kind' for 2 samples: give one for all"),
    "an unknown column": (ROW, "known=d:1", "field 'known' has no column 'd': there are a, b, c"),
    "a column twice": (ROW, "known=a:1; a:2", "field 'known' got a column twice … give it once"),
    "a column without a number": (ROW, "known=a:", "'known' takes 3 numbers, ? for those unknown, or name:number"),
    "columns left out": (ROW, "known=1 2", "takes 3 numbers … got '1 2'"),
    "a text in a column": (ROW, {"known": {"a": "high"}}, "takes 3 numbers … got 'a:high'"),
    "a column too large": (ROW, {"known": {"a": 1e39}}, "takes 3 numbers … got inf in it"),
    "an unknown class in a column": (MIXED, "known=city:c", "unknown value 'c' of 'city': there are a, b"),
    "a text for a number": (MIXED, "known=age:high", "column 'age' takes a number; got 'high'"),
    "a class of a column by number": (
        MIXED,
        {"known": [1.0, 2.0]},
        "column 'city' takes the number of a class, from 0 to 1",
    ),
    "classes by place": (MIXED, "known=3 a", "takes name:value; name:value of age, city … got '3 a'"),
    "a condition on nothing": ({}, "cat", "got 'cat', and the data have no fields: leave the condition out"),
}


def model_of(examples: Any, fields: Any) -> sampling.Model:
    still = network(lambda key: P, lambda p, t, x, c: -x)
    return sampling.Model(DataInfo("toy", examples, fields), still, P, paths.linear(), sampling.Plain(), 7)


V = model_of(Vectors((3,)), {"kind": Label(("cat", "dog"))})
TWO = np.zeros((2, 3))


def draw(**options: Any) -> Any:
    return lambda: V.sample("cat", **{"num": 2, **options})


def draw_by(**settings: Any) -> Any:
    return draw(config=sampling.SamplerConfig(**settings))


def density(x: Any = TWO, **options: Any) -> Any:
    return lambda: V.log_prob(x, "cat", **options)


# Calls of a model's methods, and words.
CALLS: dict[str, tuple[Any, str]] = {
    "no sample": (draw(num=0), "num must be at least 1; got 0"),
    "half a sample": (draw(num=2.5), "num takes a whole number or None; got 2.5"),
    "samples by text": (draw(num="2"), "num takes a whole number or None; got '2'"),
    "an empty batch": (draw(batch_size=0), "batch_size must be at least 1; got 0"),
    "no batch": (draw(batch_size=None), "batch_size takes a whole number; got None"),
    "a negative seed": (draw(seed=-1), "seed must be from 0 to 2^32 - 1; got -1"),
    "a fractional seed": (draw(seed=1.5), "seed takes a whole number; got 1.5"),
    "a huge seed": (draw(seed=2**70), "seed takes a whole number; got 1180591620717411303424"),
    "gamma as text": (draw(gamma="high"), "gamma must be a number, or an array of shape (2,); got 'high'"),
    "a gamma that is none": (draw(gamma=np.nan), "guidance scales must be finite; got gamma nan"),
    "three gammas for two": (draw(gamma=[1, 2, 3]), "an array of shape (2,); got [1, 2, 3]"),
    "the weight of a negative": (draw(gamma_negative="x"), "gamma_negative takes a number; got 'x'"),
    "an unknown negative": (draw(negative="bird"), "unknown value 'bird' of 'kind': there are cat, dog"),
    "a composition without weight": (draw(compose="cat"), "compose takes pairs of condition and weight … got 'cat'"),
    "a composition of nothing": (draw(compose=None), "compose takes pairs of condition and weight … got None"),
    "a device by name": (draw(devices=["cpu"]), "devices takes some of jax.devices(); got ['cpu']"),
    "a number of devices": (draw(devices=3), "devices takes some of jax.devices(); got 3"),
    "a solver as config": (draw(config="heun"), "config takes a SamplerConfig … got 'heun'"),
    "a solver misspelt": (draw_by(solver="huen"), "no solver 'huen', did you mean 'heun'?"),
    "half a step": (draw_by(steps=1.5), "steps takes a whole number; got 1.5"),
    "steps as text": (draw_by(steps="x"), "steps takes a whole number; got 'x'"),
    "a grid by number": (draw_by(grid=3), "grid takes text or numbers; got 3"),
    "a grid of texts": (draw_by(grid=("a", "b")), "grid takes text or numbers; got ('a', 'b')"),
    "a grid that ends early": (draw_by(grid=(0.0, 0.5)), "increase from 0 to 1; got 0, 0.5"),
    "half an interval": (draw_by(interval=(0.5,)), "interval takes 2 numbers or None; got (0.5,)"),
    "an interval backwards": (draw_by(interval=(0.8, 0.2)), "interval needs 0 <= start < stop <= 1"),
    "rescaled by text": (draw_by(rescale="x"), "rescale takes a number; got 'x'"),
    "noise by text": (draw_by(eta="x"), "eta takes a number or None; got 'x'"),
    "tolerance by text": (draw_by(tolerance="x"), "tolerance takes a number; got 'x'"),
    "measured by name": (draw(measured="x"), "measured takes Inpaint(y), Upsample(y) … got 'x'"),
    "masked measurements": (
        draw(measured=sampling.Inpaint(np.ma.masked_array([1.0, 2.0, 3.0], np.array([False, True, False])))),
        "inpaint takes an array of numbers, or the name of a file",
    ),
    "complex measurements": (draw(measured=sampling.Inpaint([1j, 2, 3])), "inpaint takes an array of numbers"),
    "measurements too large": (draw(measured=sampling.Inpaint([1e39, 2, 3])), "inpaint takes finite numbers; got inf"),
    "three measurements for two": (
        draw(measured=sampling.Inpaint(X[:3], noise=1.0)),
        "got 3 measured values for 2 samples: give one for all, or one for each",
    ),
    "a model without parameters": (
        lambda: V._replace(params=None).sample("cat"),
        "no parameters: train it, or load one",
    ),
    "no picture": (lambda: V.show("cat", num=0), "num must be at least 1; got 0"),
    "a picture of an unknown class": (lambda: V.show("bird"), "unknown value 'bird'"),
    "the density of a text": (density("x"), "got x of dtype <U1 and shape (), expected numbers (N, 3)"),
    "the density of nothing": (density(None), "got 'x', a NoneType: give an array"),
    "the density of no row": (density(TWO[:0]), "shape (0, 3), expected numbers (N, 3)"),
    "the density of one row": (density(TWO[0]), "shape (3,), expected numbers (N, 3)"),
    "the density of ragged rows": (density([[1, 2], [3]]), "no array (rows of different shapes)"),
    "the density of complex numbers": (density(TWO * 1j), "dtype complex128 … expected numbers (N, 3)"),
    "the density of NaN": (density(TWO * np.nan), "got x with NaN, infinity … in row 0: drop it"),
    "the density of masked rows": (density(np.ma.masked_array(TWO, TWO == 0)), "got 'x' with masked values"),
    "a density in no step": (density(steps=0), "steps must be at least 1; got 0"),
    "a density in half a step": (density(steps=1.5), "steps takes a whole number; got 1.5"),
    "a density by no probe": (density(probes=0), "probes must be at least 1; got 0"),
    "a density in no batch": (density(batch_size=0), "batch_size must be at least 1; got 0"),
    "the density of an image": (
        lambda: model_of(Images((4, 4, 3)), {}).log_prob(np.zeros((2, 4, 4, 3))),
        "log_prob is of arrays of floats, and toy has images, which are discrete",
    ),
    "the density of classes": (
        lambda: model_of(RECORDS, {}).log_prob(TWO[:, :2]),
        "classes in its examples, which have no",
    ),
    "given an unknown field": (lambda: V.given(colour="red"), "unknown field 'colour': there are kind"),
    "given nothing": (lambda: V.given(kind=None), "field 'kind' takes a name or a number from 0 to 1; got None"),
    "given two": (lambda: V.given(kind=["cat", "dog"]), "got 2 values of 'kind' for 1 samples"),
    "given a field called self": (lambda: V.given(self=3), "unknown field 'self'"),
    "no posterior sample": (lambda: V.given(kind="cat").sample(0), "num must be at least 1; got 0"),
    "given all of none": (lambda: V.given_all(kind=[]), "got 0 values of 'kind'"),
    "given all and one unknown": (lambda: V.given_all(kind=["cat", "bird"]), "unknown value 'bird' of 'kind'"),
    "no sample of a product": (lambda: V.given_all(kind=["cat", "dog"]).sample(0), "num must be at least 1; got 0"),
    "load nothing": (lambda: flowguide.load(None), "workdir takes text or a path; got None"),
    "load no name": (lambda: flowguide.load(""), "expected a file or folder, and got the name ''"),
    "load what is not there": (lambda: flowguide.load("nowhere"), "no run in nowhere: expected a --workdir that"),
    "load half a step": (lambda: flowguide.load("nowhere", step=1.5), "step takes a whole number or None"),
    "load an address": (lambda: flowguide.load("http://x/y"), "got the address http://x/y"),
}

# Folders of a run: what is there before, the folder asked for, words. Nothing else may be there after.
WORKDIRS: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "a file": ({"run": "mine"}, "run", "cannot write to run (File exists): choose another folder"),
    "below a file": ({"run": "mine"}, "run/new", "cannot write to run/new (Not a directory)"),
    "a device": ({}, "/dev/null", "cannot write to /dev/null (File exists)"),
    "no file system": ({}, "/proc/nowhere", "cannot write to /proc/nowhere"),
    "a NUL": ({}, "a\0b", "(embedded null byte): choose another folder"),
    "many letters": ({}, "x" * 300, "(File name too long): choose another folder"),
}

DOORS: dict[str, dict[str, Any]] = {
    "arrays": ARRAYS,
    "networks": NETWORKS,
    "files": FILES,
    "folders": FOLDERS,
    "hugging face": HUGGING_FACE,
    "commands": COMMANDS,
    "conditions": CONDITIONS,
    "calls": CALLS,
    "workdirs": WORKDIRS,
}


def rows(door: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", DOORS[door])


def says(message: str, words: str) -> None:
    """The message is one line, of some length, with the words in their order."""
    assert message.splitlines() == [message]
    assert len(message) < 6000 if "File name too long" in words else 900
    at = 0
    for piece in words.split(" … "):
        assert piece in message[at:], message
        at = message.index(piece, at) + len(piece)


def refused(call: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    says(str(error.value), words)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder. A run that would start there has not been refused in time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "open_workdir", lambda *_: pytest.fail("it was accepted"))
    return tmp_path


def write(folder: Any, contents: dict[str, str | bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def files_in(folder: Any) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@rows("arrays")
def test_arrays(name, here):
    arguments, options, words = ARRAYS[name]
    refused(lambda: flowguide.fit(*arguments, **{"workdir": "run", "minutes": 0.001, **options}), words)
    assert not files_in(here)


@rows("networks")
def test_networks(name, here):
    given, words = NETWORKS[name]
    refused(lambda: flowguide.fit(X, KINDS, workdir="run", minutes=0.001, network=given), words)
    assert not files_in(here)


@rows("files")
def test_files(name, here):
    file, content, options, words = FILES[name]
    write(here, {file: content})
    refused(lambda: flowguide.fit(here / file, workdir="run", minutes=0.001, **options), words)
    assert files_in(here) == {file}


@rows("folders")
def test_folders(name, here):
    contents, options, words = FOLDERS[name]
    write(here / "data", contents)
    before = files_in(here)
    refused(lambda: flowguide.fit(here / "data", workdir="run", minutes=0.001, **options), words)
    assert files_in(here) == before


@rows("hugging face")
def test_hugging_face(name, here, monkeypatch):
    load, options, words = HUGGING_FACE[name]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=lambda path: load()))
    write(here, {"data/state.json": "{}"})
    refused(lambda: flowguide.fit(here / "data", workdir="run", minutes=0.001, **options), words)
    assert files_in(here) == {"data", "data/state.json"}


@rows("commands")
def test_commands(name, here, capsys):
    arguments, words = COMMANDS[name]
    write(here, {"t.csv": TABLE, "bad.csv": HEAD + "1,2\n"})
    (here / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "example/s" not in line]
    assert line.startswith(f"flowguide {arguments[0]}: error: ")
    says(line, words)
    assert files_in(here) == {"t.csv", "bad.csv", "empty"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with files that prompts may name."""
    folder = tmp_path_factory.mktemp("files")
    seven = saved(lambda file: Image.fromarray(np.full((4, 4), 7, np.uint8)).save(file, "PNG"))
    deep = saved(lambda file: Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(file, "PNG"))
    write(folder, {"seven.png": seven, "deep.png": deep, "small.png": picture(3, 3), "z.npz": npz(a=np.zeros((3, 2)))})
    write(folder, {"nan.npy": npy(np.full((4, 4, 1), np.nan)), "large.npy": npy(np.full((4, 4, 1), 1e39))})
    write(folder, {"turned.png": pngs(SMALL[:1], exif=TURNED)["0.png"]})
    HOLED.save(folder / "holed.png", transparency=0)
    np.save(folder / "pickle.npy", np.array([{}] * 2))
    os.mkfifo(folder / "pipe")
    return folder


@rows("conditions")
def test_conditions(name, pictures, monkeypatch):
    fields, condition, words = CONDITIONS[name]
    monkeypatch.chdir(pictures)
    shape: Any = Vectors((3,)) if fields is ROW else RECORDS if fields is MIXED else Images((4, 4, 3))
    refused(lambda: model_of(shape, fields).sample(condition, num=2), words)


@rows("calls")
def test_calls(name, here):
    call, words = CALLS[name]
    refused(call, words)
    assert not files_in(here)


@rows("workdirs")
def test_workdirs(name, tmp_path, monkeypatch):
    before, workdir, words = WORKDIRS[name]
    write(tmp_path, before)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "_restore", lambda *_: pytest.fail("it was accepted"))
    refused(lambda: flowguide.fit(X, KINDS, workdir=workdir, minutes=0.001), words)
    assert files_in(tmp_path) == set(before)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_may_not_be_read_or_written(tmp_path):
    write(tmp_path, {"t.csv": TABLE})
    (tmp_path / "t.csv").chmod(0)
    refused(lambda: flowguide.fit(tmp_path / "t.csv"), "which cannot be read")
    (tmp_path / "runs").mkdir(mode=0o500)
    refused(lambda: flowguide.fit(X, workdir=tmp_path / "runs" / "new"), "cannot write to … (Permission denied)")


def test_links_that_lead_nowhere(here):
    os.symlink("loop", "loop")
    os.symlink("gone.csv", "broken.csv")
    os.mkfifo("pipe.csv")
    for name, words in {"loop": "", "broken.csv": "", "pipe.csv": ", which is neither a file nor a folder"}.items():
        refused(
            lambda name=name: flowguide.fit(name), f"got {name}{words or ', which does not exist: give a file or a'}"
        )


def test_there_are_so_many_of_them():
    assert sum(map(len, DOORS.values())) >= 410


def seen(*arguments: Any, **options: Any) -> Any:
    """Returns the data that fit would train on."""

    class SeenError(Exception):
        pass

    def train(config: Any, place: Any, *, data: Any, **_: Any) -> None:
        raise SeenError(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train", train)
        with pytest.raises(SeenError) as error:
            flowguide.fit(*arguments, workdir="run", **options)
    return error.value.args[0]


def all_of(data: Any) -> np.ndarray:
    """Returns all examples, in an order that does not depend on what is held out."""
    x = np.concatenate([part.read(np.arange(part.size)).x for part in data])
    return x[np.lexsort(x.reshape(len(x), -1).T[::-1])]


# Forms of the same forty vectors and classes.
ODD_ARRAYS: dict[str, tuple[Any, Any]] = {
    "JAX arrays": (jnp.asarray(X), KINDS),
    "lists": (X.tolist(), KINDS),
    "tuples of JAX arrays": (tuple(map(jnp.asarray, X)), tuple(KINDS)),
    "objects": (X.astype(object), np.array(KINDS, object)),
    "another byte order": (X.astype(">f8"), KINDS),
    "the other order in memory": (np.asfortranarray(X), KINDS),
    "a buffer": (memoryview(X.data), KINDS),
    "masks that hide nothing": (np.ma.masked_array(X), KINDS),
    "texts with blanks": (X, [f" {kind}\n" for kind in KINDS]),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_odd_arrays_are_the_plain_ones(name, here):
    x, condition = ODD_ARRAYS[name]
    data, plain = seen(x, condition), seen(X, KINDS)
    assert data.train.info == plain.train.info
    np.testing.assert_array_equal(all_of(data), all_of(plain))


def test_odd_arrays_are_taken_for_what_they_are(here):
    for low in (jnp.asarray(X, jnp.bfloat16), jnp.asarray(X, jnp.float8_e4m3fn), jnp.arange(N).reshape(N, 1) % 5):
        low = low.astype(jnp.int4) if low.dtype == jnp.int32 else low
        np.testing.assert_array_equal(all_of(seen(low)), all_of(seen(np.asarray(low.astype(jnp.float32)))))
    fields = seen(X, Frame()).train.info.fields
    assert fields == seen(X, {"kind": KINDS, "angle": X[:, 0]}).train.info.fields
    assert seen(Frame()).train.info == seen({"kind": KINDS, "angle": X[:, 0]}).train.info
    assert seen(X, [["a"], [], ["b"], []] * (N // 4)).train.info.fields == {"label": Labels(("a", "b"))}


A, B, KIND = zip(*(line.split(",") for line in ROWS.split()), strict=True)
COLUMNS = {"a": np.array(A, float), "b": np.array(B, float), "kind": list(KIND)}
ODD = {"example": ("a", "b"), "fields": ("kind",)}
BLANKS = "".join(f"{line},{'' if i % 3 else 5}\n" for i, line in enumerate(ROWS.split()))
# Forms of the same table, and options.
ODD_FILES: dict[str, tuple[str, str | bytes, dict[str, Any]]] = {
    "a mark of utf-8": ("t.csv", TABLE.encode("utf-8-sig"), {}),
    "utf-16": ("t.csv", TABLE.encode("utf-16"), {}),
    "tabs in utf-16": ("t.tsv", TABLE.replace(",", "\t").encode("utf-16"), {}),
    "a capital suffix": ("t.CSV", TABLE, {}),
    "returns": ("t.csv", TABLE.replace("\n", "\r"), {}),
    "returns and feeds": ("t.csv", TABLE.replace("\n", "\r\n"), {}),
    "blank lines": ("t.csv", "\n\n" + HEAD + "\n" + ROWS + "\n\n", {}),
    "blanks around": ("t.csv", TABLE.replace(",", " , "), {}),
    "quotes": ("t.csv", TABLE.replace("cat", '"cat"').replace("kind", '"ki\nnd"').replace("ki\nnd", "kind"), {}),
    "decimal commas": ("t.csv", TABLE.replace(",", ";").replace(".", ","), {}),
    "blanks in another column": ("t.csv", "a,b,kind,c\n" + BLANKS, ODD),
    "texts in another column": ("t.csv", "a,b,kind,c\n" + BLANKS.replace(",5\n", ",unknown\n"), ODD),
    "names of classes beside": ("t.npz", npz(**COLUMNS, names=["cat", "dog"], mean=np.zeros(3)), {}),
    "complex numbers in another column": ("t.npz", npz(**COLUMNS, c=np.zeros(20, complex)), ODD),
    "times in another column": ("t.parquet", parquet(**COLUMNS, c=[datetime.datetime(2020, 1, 1)] * 20), ODD),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_are_the_plain_one(name, here):
    file, content, options = ODD_FILES[name]
    write(here, {file: content, "plain/t.csv": TABLE})
    data, plain = seen(here / file, **options), seen(here / "plain" / "t.csv")
    assert data.train.info == plain.train.info
    np.testing.assert_array_equal(all_of(data), all_of(plain))
    np.testing.assert_array_equal(np.sort(all_of(data)[:, 0]), np.sort(COLUMNS["a"]).astype(np.float32))


SMALL = PIXELS[:4, :6]  # 6 x 8 pixels
TURNED = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: a quarter to the right
)
GREYS = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (10, 90, 170)]
HOLED = Image.fromarray(RNG.integers(0, 3, (8, 8), dtype=np.uint8), "P")
HOLED.putpalette([9, 8, 7, 1, 2, 3, 4, 5, 6])
COLOURS = np.array([[9, 8, 7, 0], [1, 2, 3, 255], [4, 5, 6, 255]], np.uint8)


def pngs(images: Any, suffix: str = "png", form: str = "PNG", **options: Any) -> dict[str, str | bytes]:
    save = [saved(lambda file, a=a: Image.fromarray(a).save(file, form, **options)) for a in images]
    return {f"{i}.{suffix}": content for i, content in enumerate(save)}


# Contents of a folder, and the images that it holds.
ODD_FOLDERS: dict[str, tuple[dict[str, str | bytes], Any]] = {
    "turned by EXIF": (pngs(SMALL, exif=TURNED), np.rot90(SMALL, -1, (1, 2))),
    "a damaged EXIF": (pngs(SMALL, exif=b"Exif\0\0MM\0*\xff\xff"), SMALL),
    "png called jpg": (pngs(SMALL, "jpg"), SMALL),
    "webp": (pngs(SMALL, "webp", "WEBP", lossless=True), SMALL),
    "capitals": (pngs(SMALL, "PNG"), SMALL),
    "hidden files": (
        {**pngs(SMALL), "._0.png": "x", ".cache/0.png": PNG, "__MACOSX/._0.png": "x", "Thumbs.db": "x"},
        SMALL,
    ),
    "an animation": (
        {"0.gif": saved(lambda file: GREYS[0].save(file, "GIF", save_all=True, append_images=GREYS[1:])), "1.png": PNG},
        None,
    ),
    "a transparent palette": (
        {f"{i}.png": saved(lambda file: HOLED.save(file, "PNG", transparency=0)) for i in range(2)},
        COLOURS[np.asarray(HOLED)][None].repeat(2, 0),
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_odd_images_are_seen_as_people_see_them(name, here):
    contents, images = ODD_FOLDERS[name]
    write(here / "data", contents)
    data = seen(here / "data")
    assert not data.train.info.fields
    got = all_of(data)
    if images is None:  # the first picture of an animation
        assert (got == 10).all((1, 2, 3)).sum() == 1
        return
    assert got.shape == images.shape
    np.testing.assert_array_equal(got, images[np.lexsort(images.reshape(len(images), -1).T[::-1])])


def test_inks_are_colours(here):
    orange = Image.new("RGB", (8, 8), (230, 120, 40)).convert("CMYK")
    write(here, {f"{i}.jpg": saved(lambda file: orange.save(file, "JPEG", quality=95)) for i in range(2)})
    x = seen(here).train.read(np.arange(1)).x.astype(int)
    assert x.shape == (1, 8, 8, 3)
    assert np.abs(x - [230, 120, 40]).max() < 8


def test_lists_may_name_images_anywhere(here):
    write(here, {f"images/{name}": content for name, content in pngs(SMALL).items()})
    rows = [f"{here / 'images' / f'{i}.png'},{'|'.join('ab'[: i % 3])}" for i in range(4)]
    write(here, {"data/metadata.csv": "\n".join(["file_name,tags", *rows])})
    data = seen(here / "data")
    assert data.train.info.fields == {"tags": Labels(("a", "b"))}  # some have none
    np.testing.assert_array_equal(all_of(data), all_of(seen(here / "images")))


def test_images_of_hugging_face_are_made_equal(here, monkeypatch):
    part = Part(image=("Image", images_of(picture(9, 9, "L"), PNG, None)[:2]), label=("ClassLabel", [0, 1]))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=lambda path: part))
    write(here, {"data/state.json": "{}"})
    data = seen(here / "data", image_size=4)
    assert data.train.info.shape == (4, 4, 3)
    assert data.train.info.fields == {"label": Label(("x", "y"))}


def test_the_home_folder_is_that_of_the_user(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write(here, {"t.csv": TABLE})
    assert seen("~/t.csv").train.size == 18
    assert storage.path("~/runs/mine") == here / "runs" / "mine"


def test_odd_conditions_and_settings(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    fields = {"kind": Label(("cat", "a=b, c")), "petal length (cm)": Vector(1)}
    both = prompts.parse("kind=a=b, c,petal length (cm)=0.5", fields)
    assert (both["kind"], both["petal length (cm)"]) == (1, 0.5)
    for one in (1.5, np.float32(1.5), jnp.float32(1.5), "1.5"):
        found = value("known", {"b": one}, ROW["known"])
        np.testing.assert_array_equal(found, [np.nan, 1.5, np.nan])
    holed = Known(Images((8, 8, 3))).parse("known", "holed.png")
    np.testing.assert_array_equal(np.isnan(holed[..., 0]), np.asarray(HOLED) == 0)
    turned = Aligned(Images((8, 6, 3))).parse("a", "turned.png")
    np.testing.assert_array_equal(turned, np.rot90(SMALL[0], -1))
    settings = sampling.SamplerConfig("euler", grid=[0.0, 0.5, 1.0], interval=[0.2, 0.8])  # pyright: ignore
    assert sampling.resolve_defaults(settings)[2:7:4] == ((0.0, 0.5, 1.0), (0.2, 0.8))
    assert V.sample(np.array(["cat", "dog"]), num=jnp.int32(2), config=sampling.SamplerConfig("euler", 1)).shape == (
        2,
        3,
    )


def test_parameters_may_be_in_a_list():
    """No names in it, and so no null token by name."""
    listed = network(lambda key: [jnp.ones(3)], lambda p, t, x, c: p[0] * x)
    assert sampling.check_null(V._replace(network=listed, params=[jnp.ones(3)]), 0).untouched == ()
