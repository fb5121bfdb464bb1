"""Captions as sequences of word ids, over a closed vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide.errors import DataError, hint, listed, shown
from flowguide.schema.fields.field import Column, Field, check_index, check_setting
from flowguide.typing import Array, PRNGKey


class Tokens(NamedTuple):
    """A field with a sequence of words, int32 ``(B, length)``; id 0 pads, ids index ``words``."""

    length: int
    words: tuple[str, ...]

    kind = "tokens"
    dtype = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def takes(self) -> str:
        return f"words, or {self.length} numbers from 0 to {len(self.words) - 1}"

    @classmethod
    def of_column(cls, column: Column, known: Field | None) -> Field | None:
        if column.dtype is not None:
            return None
        if isinstance(known, Tokens):
            return known
        if column.vocabulary is None:
            raise DataError(
                f"got the text {column.name!r}, for which the data set states no vocabulary: "
                f"pass fields={{{column.name!r}: vocabulary(texts)}}"
            )
        return column.vocabulary

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Tokens:
        field = cls(**content)
        check_setting("length", field.length, least=0)
        check_setting("words", field.words, texts=True)
        return field

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def column(self, name: str, rows: Sequence[Any]) -> np.ndarray:
        ids = _ids(self)
        return np.stack([_encoded(row.decode() if isinstance(row, bytes) else row, self, ids) for row in rows])

    def parse(self, name: str, text: str) -> np.ndarray:
        return encode(text, self)

    def check(self, name: str, values: np.ndarray) -> None:
        check_index(name, self, values, len(self.words))

    def text(self, value: np.ndarray) -> str | None:
        return " ".join(self.words[int(k)] for k in value if k)

    def mirrored(self, values: Any) -> Any:
        return values

    def random(self, key: PRNGKey, num: int) -> Array:
        return jax.random.randint(key, (num, self.length), 0, len(self.words))


def vocabulary(texts: Iterable[str]) -> Tokens:
    """Returns the field that can hold every one of ``texts``: all their words, and room for the longest.

    ``words[0]`` is the empty word, which pads, so that an id is an index into ``words``.
    """
    sentences = [_words(text) for text in texts]
    words = sorted({word for sentence in sentences for word in sentence})
    return Tokens(length=max(map(len, sentences), default=0), words=("", *words))


def encode(text: str, field: Tokens) -> np.ndarray:
    """Returns the ids of the words of ``text``, int32 ``(field.length,)``, padded with 0. Ignores case and commas.

    Raises:
      DataError: for a word outside the vocabulary, or too many words.
    """
    return _encoded(text, field, _ids(field))


def _ids(field: Tokens) -> dict[str, int]:
    return {word: i for i, word in enumerate(field.words) if i > 0}


def _encoded(text: str, field: Tokens, ids: dict[str, int]) -> np.ndarray:
    words = _words(text)
    if unknown := [word for word in words if word not in ids]:
        near, known = hint(unknown[0], ids), listed(ids)
        raise DataError(f"got the unknown word {unknown[0]!r:.100} in {shown(text)}{near}, expected words of: {known}")
    if len(words) > field.length:
        raise DataError(f"got {len(words)} words in {shown(text)}, expected at most {field.length}: shorten it")
    padded = np.zeros(field.length, np.int32)
    padded[: len(words)] = [ids[word] for word in words]
    return padded


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()
