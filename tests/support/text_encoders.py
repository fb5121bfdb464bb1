"""Text encoders that need no download."""

import zlib

import numpy as np

SIZE = 12
CALLS: list[list[str]] = []  # what ``ngrams`` was asked for


def ngrams(texts):
    """A vector for each word: signs of its hashed runs of three characters, added up, and divided by a root.

    Words that share a part are alike, and commas are words.
    """
    CALLS.append(list(texts))
    return [np.array([_word(word) for word in text.replace(",", " ,").split()]).reshape(-1, SIZE) for text in texts]


def _word(word):
    padded = f"<{word.lower()}>"
    runs = [padded[i : i + 3] for i in range(len(padded) - 2)]
    total = np.zeros(SIZE)
    for run in runs:
        seed = zlib.crc32(run.encode())
        total[seed % SIZE] += 1.0 if seed >> 16 & 1 else -1.0
    return total / np.sqrt(len(runs))


def wrong_count(texts):
    return ngrams(texts)[1:]


def flat(texts):
    return [a.mean(axis=0) for a in ngrams(texts)]


def not_finite(texts):
    return [np.full_like(a, np.inf) for a in ngrams(texts)]


def two_sizes(texts):
    return [a[:, : 5 + len(text) % 2] for a, text in zip(ngrams(texts), texts, strict=True)]


def too_large(texts):
    return [1e6 * (1 + np.abs(a)) for a in ngrams(texts)]


def wider(texts):
    return [np.concatenate([a, a], axis=1) for a in ngrams(texts)]


def fails(texts):
    raise RuntimeError("out of memory\nsomewhere")


NUMBER = 3
