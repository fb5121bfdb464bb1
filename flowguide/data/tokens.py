"""Captions as sequences of word ids, over a closed vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flowguide.condition import Tokens
from flowguide.data.errors import DataError


def vocabulary(texts: Iterable[str]) -> Tokens:
    """The field that holds every one of ``texts``: all their words, and room for the longest.

    ``words[0]`` is the empty word, which pads, so that an id is an index into ``words``.
    """
    sentences = [_words(text) for text in texts]
    words = sorted({word for sentence in sentences for word in sentence})
    return Tokens(length=max(map(len, sentences), default=0), words=("", *words))


def encode(text: str, field: Tokens) -> np.ndarray:
    """The ids of the words of ``text``, int32 ``(field.length,)``, padded with 0 at the end.

    Case and commas do not count.

    Raises:
      DataError: for a word outside the vocabulary, or more words than there is room for.
    """
    words = _words(text)
    ids = {word: i for i, word in enumerate(field.words) if i > 0}
    if unknown := [word for word in words if word not in ids]:
        raise DataError(f"got the unknown word {unknown[0]!r} in {text!r}, expected words of: {', '.join(ids)}")
    if len(words) > field.length:
        raise DataError(f"got {len(words)} words in {text!r}, expected at most {field.length}: shorten it")
    padded = np.zeros(field.length, np.int32)
    padded[: len(words)] = [ids[word] for word in words]
    return padded


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()
