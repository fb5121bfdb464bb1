"""Text encoders: texts become padded vectors, nothing is imported unasked, what is wrong is one line."""

import contextlib
import importlib
import json
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from flowguide.errors import UserError
from flowguide.schema import Series, encoders, prompts
from flowguide.schema.conditions import conditions
from flowguide.schema.fields import field_from_json, field_to_json, value
from tests.support import text_encoders
from tests.support.text_encoders import SIZE, ngrams

PLACE = "tests.support.text_encoders"
NGRAMS = f"{PLACE}:ngrams"
FIELD = Series(5, SIZE, (1.0,) * SIZE, (2.0,) * SIZE, NGRAMS)


@pytest.fixture(autouse=True)
def trusted():
    for name in vars(text_encoders):
        encoders.trust(f"{PLACE}:{name}")


def test_a_prompt_is_what_the_encoder_gives_padded():
    found = FIELD.parse("caption", "a red, hat")
    assert (found.shape, found.dtype) == ((5, SIZE), np.float16)
    np.testing.assert_array_equal(found[:4], ngrams(["a red, hat"])[0].astype(np.float16))
    assert np.isnan(found[4:]).all()
    assert not np.isnan(found[:4]).any()


def test_prompts_lists_and_arrays_are_the_same_condition():
    fields = {"caption": FIELD}
    texts = ["a red, hat", "beard"]
    rows = np.full((2, 5, SIZE), np.nan)
    for row, each in zip(rows, ngrams(texts), strict=True):
        row[: len(each)] = each
    for asked in (texts, [f"caption={text}" for text in texts], {"caption": rows}, [{"caption": row} for row in rows]):
        c = conditions(asked, fields, 2)
        np.testing.assert_array_equal(c.value["caption"], rows.astype(np.float16), strict=True)
        assert c.present["caption"].all()
    assert prompts.describe(c.value, c.present, fields, 0) == ""


def test_a_prompt_is_encoded_once(tmp_path):
    text_encoders.CALLS.clear()
    for _ in range(3):
        conditions("some other text", {"caption": FIELD}, 4)
    assert text_encoders.CALLS == [["some other text"]]


def test_a_file_is_read_as_before(tmp_path):
    a = np.random.default_rng(0).normal(size=FIELD.shape)
    a[3:] = np.nan
    np.save(tmp_path / "red hat.npy", a)
    np.testing.assert_array_equal(FIELD.parse("c", str(tmp_path / "red hat.npy")), a.astype(np.float16), strict=True)


def test_json_and_made_up_values():
    assert field_from_json(json.loads(json.dumps(field_to_json(FIELD)))) == FIELD
    assert "encoder" not in field_to_json(FIELD._replace(encoder=""))
    drawn = FIELD.random(jax.random.key(0), 64)
    assert (drawn.shape, drawn.dtype) == ((64, 5, SIZE), np.float16)
    np.testing.assert_allclose([np.mean(drawn), np.std(drawn)], [1, 2], atol=0.2)
    for wrong in ("ngrams", ":ngrams", "hf:", 3):
        with pytest.raises(ValueError, match=r"not package\.module:function or hf:NAME"):
            field_from_json({**field_to_json(FIELD), "encoder": wrong})


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({}, "one two three four five six", "field 'c' takes texts of at most 5 vectors; tests.support.text_encoders"),
        ({"encoder": f"{PLACE}:wider"}, "hat", f"takes vectors of {SIZE} numbers; {PLACE}:wider gives {2 * SIZE}"),
        ({"encoder": f"{PLACE}:too_large"}, "hat", "got NaN or infinity"),
        ({"encoder": f"{PLACE}:wrong_count"}, "hat", f"text encoder '{PLACE}:wrong_count' gave 0 arrays for 1 texts"),
        ({"encoder": f"{PLACE}:flat"}, "hat", f"gave an array ({SIZE},) for 'hat', expected finite numbers (L, size)"),
        ({"encoder": f"{PLACE}:not_finite"}, "hat", "gave NaN or infinity for 'hat'"),
        ({"encoder": f"{PLACE}:fails"}, "hat", "failed on 'hat' (RuntimeError: out of memory somewhere)"),
        ({"encoder": f"{PLACE}:NUMBER"}, "hat", "is of type int: give package.module:function"),
        ({"encoder": f"{PLACE}:none"}, "hat", "cannot be imported"),
        ({}, "none.npy", "'none.npy' cannot be read (there is no such file)"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(changes, text, message):
    encoders.trust(f"{PLACE}:none")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        FIELD._replace(**changes).parse("c", text)
    assert "\n" not in str(error.value)


def test_texts_of_two_sizes_are_refused():
    with pytest.raises(UserError, match=re.escape("gave an array (1, 6) for 'hat'")):
        encoders.encode(f"{PLACE}:two_sizes", ["hats", "hat"])


def test_long_texts_are_cut_and_said_to_be():
    found = encoders.encode(NGRAMS, ["a b c", "a b", "", "a b c d"], 3)
    assert found.cut == [False, False, False, True]
    assert [len(a) for a in found.sequences] == [3, 2, 0, 3]
    np.testing.assert_array_equal(found.sequences[3], ngrams(["a b c"])[0].astype(np.float32))


def test_code_is_imported_only_if_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(
        "import numpy as np\ndef one(texts): return [np.ones((1, 3))] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    field = Series(2, 3, encoder="own_encoder:one")
    with pytest.raises(
        UserError, match=r"by 'own_encoder:one', code outside of flowguide: look at .* --trust_code"
    ) as error:
        field.parse("c", "hat")
    assert "\n" not in str(error.value)
    value("c", np.zeros((2, 3)), field)  # which needs no encoder
    with pytest.raises(UserError, match=re.escape("takes a text, a file .npy or an array (2, 3); rows of NaN pad")):
        value("c", np.zeros((2, 2)), field)
    assert "own_encoder" not in sys.modules
    encoders.trust("own_encoder:one")
    np.testing.assert_array_equal(field.parse("c", "hat"), [[1] * 3, [np.nan] * 3])


def test_an_encoder_is_given_by_its_name_or_as_a_function_that_has_one():
    assert encoders.encoder_name(ngrams) == encoders.encoder_name(NGRAMS) == NGRAMS
    wrong: Any
    for wrong in (lambda texts: texts, json.JSONEncoder.encode):
        with pytest.raises(UserError, match="expected a function that its module has under its name"):
            encoders.encoder_name(wrong)
    with pytest.raises(UserError, match=r"text encoder is 'ngrams', not package\.module:function or hf:NAME"):
        encoders.encoder_name("ngrams")


# Hugging Face's Transformers: the real one where it is installed, and its interface in NumPy everywhere.

WORDS = ["<pad>", "</s>", "a", "red", "hat"]
LIMIT = 6


class Tensor(np.ndarray):
    """As PyTorch's, for what is used of it."""

    def to(self, device):
        return self

    def bool(self):
        return self.astype(bool)

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)


class Tokens(dict[str, Any]):
    def to(self, device):
        return self


class Tokenizer:
    """Ends texts by </s>, and pads on the left, as some do."""

    model_max_length = 10**30
    pad_token = None
    eos_token = "</s>"

    def __call__(self, texts, *, truncation=False, max_length=None, padding=False, return_tensors=None, verbose=True):
        rows = [[WORDS.index(word) for word in text.split()] for text in texts]
        rows = [(row[: max_length - 1] if truncation and max_length else row) + [1] for row in rows]
        if not padding:
            return {"input_ids": rows}
        assert self.pad_token is not None
        longest = max(map(len, rows))
        ids = np.array([[0] * (longest - len(row)) + row for row in rows]).view(Tensor)
        shown = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows]).view(Tensor)
        return Tokens(input_ids=ids, attention_mask=shown)


class Model:
    config = SimpleNamespace(max_position_embeddings=LIMIT, is_encoder_decoder=False)

    def float(self):
        return self

    def to(self, device):
        assert device == "cpu"
        return self

    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask):
        """The token's number, and the mean of the numbers that are shown."""
        mean = (input_ids * attention_mask).sum(1, keepdims=True) / attention_mask.sum(1, keepdims=True)
        both = np.stack([input_ids, np.broadcast_to(mean, input_ids.shape)], axis=-1)
        return SimpleNamespace(last_hidden_state=both.view(Tensor))


@pytest.fixture
def stub(monkeypatch):
    def having(loaded):
        return SimpleNamespace(from_pretrained=loaded)

    def load(place, trust_remote_code):
        assert not trust_remote_code
        if place != "small":
            raise OSError(f"there is no {place}\n")
        return Model()

    transformers: Any = ModuleType("transformers")
    transformers.AutoTokenizer = having(lambda place, trust_remote_code: Tokenizer())
    transformers.AutoModelForTextEncoding = having(load)
    torch: Any = ModuleType("torch")
    torch.inference_mode = contextlib.nullcontext
    torch.cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "torch", torch)
    encoders._loaded.cache_clear()
    yield
    encoders._loaded.cache_clear()


def test_the_tokens_that_the_mask_shows_are_taken(stub):
    found = encoders.encode("hf:small", ["a red hat", "hat"], device="auto")
    assert found.cut == [False, False]
    np.testing.assert_allclose(found.sequences[0], [[2, 2.5], [3, 2.5], [4, 2.5], [1, 2.5]])
    np.testing.assert_allclose(found.sequences[1], [[4, 2.5], [1, 2.5]])


@pytest.mark.parametrize("length", [None, 3, 100])
def test_texts_are_cut_to_the_length_or_to_what_the_model_takes(stub, length):
    found = encoders.encode("hf:small", ["a red hat red hat red hat", "a hat"], length)
    assert found.cut == [True, False]
    assert [len(a) for a in found.sequences] == [min(length or LIMIT, LIMIT), 3]
    assert found.sequences[0][-1, 0] == 1  # the tokenizer keeps the end


def test_no_model_and_no_package_are_one_line(stub, monkeypatch):
    with pytest.raises(
        UserError, match=r"text encoder 'hf:none' cannot be loaded \(OSError: there is no none\): check"
    ):
        encoders.encode("hf:none", ["a"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    encoders._loaded.cache_clear()
    with pytest.raises(UserError, match=r"pip install \"flowguide\[text\]\""):
        encoders.encode("hf:small", ["a"])


def made(transformers, kind):
    """A tiny model with random weights, and whether its positions are limited."""
    sizes = {"vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": LIMIT}
    seen = {**sizes, "image_size": 8, "patch_size": 4}
    if kind == "t5":
        few = {"vocab_size": 5, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**few, decoder_start_token_id=0))
    if kind == "bart":
        few = {"vocab_size": 5, "d_model": 8, "max_position_embeddings": LIMIT, "pad_token_id": 0, "eos_token_id": 1}
        for part in ("encoder", "decoder"):
            few |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
        return transformers.BartModel(transformers.BartConfig(**few, decoder_start_token_id=1))
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes))
    config = transformers.CLIPTextConfig(**sizes, pad_token_id=0, bos_token_id=2, eos_token_id=1)
    if kind == "clip text":
        return transformers.CLIPTextModel(config)
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=config.to_dict(), vision_config=seen))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "bart", "bert", "clip text", "clip"])
def test_tiny_models_of_transformers(kind, tmp_path):
    """The hidden states are those of the model called by hand, one text at a time and without padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    parts = importlib.import_module("tokenizers")
    torch.manual_seed(0)
    model = made(transformers, kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    words = parts.Tokenizer(parts.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    words.post_processor = parts.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    found = encoders.encode(f"hf:{tmp_path}", ["a red hat", "hat"])
    text = model.get_encoder() if kind in ("t5", "bart") else getattr(model, "text_model", model)
    for text_ids, sequence in zip(([2, 3, 4, 1], [4, 1]), found.sequences, strict=True):
        with torch.no_grad():
            alone = text(input_ids=torch.tensor([text_ids])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(sequence, alone, atol=1e-4)
    assert np.abs(found.sequences[0][-1] - found.sequences[1][-1]).max() > 1e-2  # the last token saw the others
    long = encoders.encode(f"hf:{tmp_path}", ["hat " * 20])
    assert (long.cut, len(long.sequences[0])) == (([False], 21) if kind == "t5" else ([True], LIMIT))
