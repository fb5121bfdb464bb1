"""Text encoders: how a text becomes a sequence of vectors.

A run keeps the name of its encoder, and calls it for prompts. The name is

- ``package.module:function``: a function of yours, from a list of texts to a list of float arrays ``(L_i, size)``;
- ``hf:NAME``: a text encoder of Hugging Face's Transformers, a name on its hub or a folder. It gives the last hidden
  state of every token that its attention mask shows.

A function of yours is code that a file names, so it is imported only after ``trust``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from flowguide.errors import UserError, one_line, shown
from flowguide.foreign import imported

HUGGING_FACE = "hf:"
UNLIMITED = 10**6  # tokens; Transformers says 10^30 of a tokenizer without a limit

# (texts, the largest number of vectors or None) -> an array for each, and whether it is cut already.
_Run: TypeAlias = Callable[[list[str], int | None], tuple[list[Any], list[bool]]]

_TRUSTED: set[str] = set()  # by the user of this process


class Encoded(NamedTuple):
    """Encoded texts.

    Attributes:
      sequences: float32 ``(L_i, size)``, one for each text.
      cut: bool, whether a text had more vectors than allowed; its sequence holds the first of them.
    """

    sequences: list[np.ndarray]
    cut: list[bool]


def trust(name: str) -> None:
    """Allows this process to import the encoder of this name: the user said so, not a file."""
    _TRUSTED.add(name)


def check_encoder(name: Any) -> None:
    """Raises ValueError unless ``name`` is written as the name of an encoder."""
    if not (isinstance(name, str) and all(name.partition(":"))):
        raise ValueError(f"encoder is {name!r:.60}, not package.module:function or {HUGGING_FACE}NAME")


def encoder_name(encoder: str | Callable[[list[str]], Any]) -> str:
    """Returns the name of an encoder, which the user gave as such or as a function, and trusts it.

    Raises:
      UserError: if it is no name, or a function that cannot be found again by a name.
    """
    if callable(encoder):
        name = f"{encoder.__module__}:{getattr(encoder, '__qualname__', type(encoder).__qualname__)}"
        if "." in name.partition(":")[2] or imported("text encoder", name, "function") is not encoder:
            raise UserError(f"got the text encoder {name}, expected a function that its module has under its name")
    else:
        name = encoder
    try:
        check_encoder(name)
    except ValueError as error:
        raise UserError(f"text {error}") from error
    trust(name)
    return name


def encode(name: str, texts: Sequence[str], length: int | None = None, *, device: str = "cpu") -> Encoded:
    """Returns the vectors of texts. The encoder is loaded once in a process.

    Args:
      name: of the encoder.
      texts: one or more.
      length: the largest number of vectors; longer sequences are cut. None for what the encoder allows.
      device: of PyTorch, for ``hf:`` encoders; "auto" for a GPU if there is one. Prompts take the CPU: JAX may hold all
        memory of a GPU.

    Raises:
      UserError: if the encoder is not trusted, cannot be loaded, fails, or returns something else.
    """
    if not name.startswith(HUGGING_FACE) and name not in _TRUSTED:
        raise UserError(
            f"texts are embedded by {name!r:.100}, code outside of flowguide: look at that code, then allow its import "
            "with --trust_code, or load(..., trust_code=True); or give embeddings, as an array or a file .npy"
        )
    try:
        found, cut = _loaded(name, device)(list(texts), length)
        sequences = [np.asarray(each, np.float32) for each in found]
    except UserError:
        raise
    except Exception as error:  # whatever the encoder does
        raise UserError(
            f"text encoder {name!r:.100} failed on {shown(texts[0])} ({type(error).__name__}: {one_line(error)})"
        ) from error
    _check(name, texts, sequences)
    if length is not None:
        cut = [before or len(a) > length for before, a in zip(cut, sequences, strict=True)]
    return Encoded([a[:length] for a in sequences], cut)


def padded(sequences: Sequence[np.ndarray] | np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns sequences ``(L_i, size)`` as one array ``(N, *shape)``, padded by rows of NaN.

    Args:
      sequences: with L_i <= length vectors.
      shape: (length, size).
      dtype: of the result; numbers that it cannot hold become infinite.
    """
    found = np.full((len(sequences), *shape), np.nan, dtype)
    with np.errstate(over="ignore"):
        for row, each in zip(found, sequences, strict=True):
            row[: len(each)] = each
    return found


def _check(name: str, texts: Sequence[str], sequences: Sequence[np.ndarray]) -> None:
    if len(sequences) != len(texts):
        raise UserError(f"text encoder {name!r:.100} gave {len(sequences)} arrays for {len(texts)} texts")
    for text, a in zip(texts, sequences, strict=True):
        if a.ndim != 2 or not a.shape[1] or a.shape[1] != sequences[0].shape[1] or not np.isfinite(a).all():
            what = "NaN or infinity" if a.ndim == 2 and not np.isfinite(a).all() else f"an array {a.shape}"
            raise UserError(
                f"text encoder {name!r:.100} gave {what} for {shown(text)}, expected finite numbers (L, size), with "
                "one size for all texts"
            )


@functools.cache
def _loaded(name: str, device: str) -> _Run:
    if name.startswith(HUGGING_FACE):
        return _hugging_face(name, device)
    function = imported("text encoder", name, "function")

    return lambda texts, length: (list(function(texts)), [False] * len(texts))


def _hugging_face(name: str, device: str) -> _Run:
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f'text encoder {name!r:.100} needs Transformers and PyTorch ({error}): pip install "flowguide[text]", or '
            "give embeddings, as an array or a file .npy"
        ) from error
    try:
        place = name.removeprefix(HUGGING_FACE)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        model = _text_model(transformers, place).float().to(device).eval()
    except Exception as error:  # Transformers raises nearly anything for a name that it does not find
        raise UserError(
            f"text encoder {name!r:.100} cannot be loaded ({type(error).__name__}: {one_line(error)}): check its name "
            "and the connection, or give a folder that holds it"
        ) from error
    if tokenizer.pad_token is None:  # any token will do: it is masked
        tokenizer.pad_token = tokenizer.eos_token
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", UNLIMITED), UNLIMITED)

    def run(texts: list[str], length: int | None) -> tuple[list[Any], list[bool]]:
        most = limit if length is None else min(length, limit)
        counts = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        tokens = tokenizer(texts, truncation=True, max_length=most, padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        rows = [each[mask.bool()].cpu().numpy() for each, mask in zip(hidden, tokens["attention_mask"], strict=True)]
        return rows, [count > most for count in counts]

    return run


def _text_model(transformers: Any, place: str) -> Any:
    """Returns the encoder alone of a model: of T5 without the decoder, of CLIP without that of images."""
    try:
        return transformers.AutoModelForTextEncoding.from_pretrained(place, trust_remote_code=False)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        model = transformers.AutoModel.from_pretrained(place, trust_remote_code=False)
        return model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)
