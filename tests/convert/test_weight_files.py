"""State dicts as files have them: wrappers are taken off, and what is not exactly right is refused in one line."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.convert import FAMILIES, Unstated, class_names
from flowguide.convert.files import checked, chosen
from flowguide.convert.parts import shapes
from flowguide.errors import UserError
from tests.support.released import CASES, random_state


def check(name, state, unstated=None):
    return checked(state, FAMILIES[name], CASES[name].unstated if unstated is None else unstated)


@pytest.mark.parametrize("name", CASES)
def test_the_sizes_are_those_of_the_tensors(name):
    state, sizes = check(name, random_state(name))
    assert sizes == CASES[name].sizes
    assert {a.dtype for a in state.values()} == {np.dtype("float32")}


def test_published_widths_tell_what_shapes_do_not():
    def sizes_of(name, sizes, unstated):
        family = FAMILIES[name]
        return family.sizes(shapes(family.parts(sizes), sizes.depth), unstated)

    for width, heads in ((384, 6), (768, 12), (1024, 16), (1152, 16)):
        wide = CASES["sit"].sizes._replace(width=width, heads=heads)
        assert sizes_of("sit", wide, Unstated()) == wide
    assert sizes_of("sit", wide, Unstated(heads=8)).heads == 8
    for width, start in ((768, 4), (1024, 8), (1280, 10)):
        wide = CASES["jit"].sizes._replace(width=width, start=start)
        assert sizes_of("jit", wide, Unstated()) == wide
    for name, flag in (("sit", "heads"), ("jit", "class_tokens_from")):
        with pytest.raises(UserError, match=f"no published network has width 48 .*--{flag}: give it"):
            check(name, random_state(name), Unstated())


def test_averaged_weights_are_taken_and_prefixes_taken_off():
    a, b, c = (np.full(2, i, np.float32) for i in range(3))
    files = {"model.module.x": a, "ema.module._orig_mod.x": b, "opt.state.0.exp_avg": c}
    assert chosen(files, ("ema",), None) == {"x": pytest.approx(b)}
    assert chosen(files, ("ema",), "model") == {"x": pytest.approx(a)}
    assert chosen({"module.x.y": a, "module.z": b}, ("ema",), None) == {"x.y": pytest.approx(a), "z": pytest.approx(b)}
    files = {"model.net.x": a, "model_ema1.net.x": b, "model_ema2.net.x": c}
    assert chosen(files, FAMILIES["jit"].averages, None) == {"x": pytest.approx(b)}
    assert chosen(files, FAMILIES["jit"].averages, "model_ema2") == {"x": pytest.approx(c)}
    with pytest.raises(UserError, match="'emma' in the file: --ema takes one of model, model_ema1, model_ema2"):
        chosen(files, FAMILIES["jit"].averages, "emma")


def test_projectors_are_dropped_from_repa_alone():
    more = {"projectors.0.0.weight": np.zeros((2, 3), np.float32)}
    assert "projectors.0.0.weight" not in check("repa", random_state("repa") | more)[0]
    with pytest.raises(UserError, match=r"weights of a SiT .*1 surplus: projectors.0.0.weight"):
        check("sit", random_state("sit") | more)


def test_half_precision_is_converted():
    state = {key: a.astype(jnp.bfloat16) for key, a in random_state("lightningdit").items()}
    found = check("lightningdit", state)[0]
    np.testing.assert_array_equal(found["x_embedder.proj.bias"], state["x_embedder.proj.bias"].astype(np.float32))


def test_tables_that_were_averaged_are_accepted():
    """In float32, decay·p + (1 − decay)·p is not p: its fixed point is (1 − decay)p/(1 − decay), each rounded."""
    decay, rest = np.float32(0.9999), np.float32(1 - 0.9999)
    factor = float(rest) / (1 - float(decay))
    assert 1e-4 < 1 - factor < 2e-4
    state = random_state("sit")
    check("sit", state | {"pos_embed": np.float32(factor) * state["pos_embed"]})


def changed(name, key, value):
    """The state dict with one tensor changed; None takes it out."""
    state = random_state(name)
    if value is None:
        del state[key]
    else:
        state[key] = value(state.get(key))
    return state


def infinite(a):
    a.flat[-1] = np.inf
    return a


def slightly(a):
    a[0, 4, 7] += 2e-3
    return a


BAD = {
    "missing": ("sit", "blocks.1.mlp.fc2.bias", None, "1 missing: blocks.1.mlp.fc2.bias"),
    "missing and needed": (
        "sit",
        "x_embedder.proj.weight",
        None,
        "x_embedder.proj.weight of 4 axes; the file has blocks.",
    ),
    "a block too few": ("jit", "blocks.2.norm1.weight", None, "1 missing: blocks.2.norm1.weight"),
    "surplus": ("dit", "extra.weight", lambda _: np.zeros(3, np.float32), "1 surplus: extra.weight"),
    "misshapen": ("sit", "blocks.0.attn.qkv.weight", lambda a: a[:-1], r"blocks.0.attn.qkv.weight \(143, 48\), not"),
    "of other axes": ("sit", "pos_embed", lambda a: a[0], r"pos_embed of 3 axes; the file has it of shape \(9, 48\)"),
    "empty": ("sit", "pos_embed", lambda a: a[:, :0], r"the file has it of shape \(1, 0, 48\)"),
    "no square": ("sit", "pos_embed", lambda a: a[:, :8], "expected square images; pos_embed is of 8 tokens"),
    "other channels": (
        "sit",
        "final_layer.linear.weight",
        lambda a: a[:-8],
        "16 or 32 outputs, for 4 channels .* got 24",
    ),
    "doubled channels": ("jit", "final_layer.linear.weight", lambda a: np.r_[a, a], "of 27 outputs, .* got 54"),
    "learned positions": ("dit", "pos_embed", slightly, "pos_embed differs by up to 0.002 from the fixed values"),
    "other rotations": (
        "lightningdit",
        "feat_rope.freqs_sin",
        lambda a: -a,
        "feat_rope.freqs_sin differs by up to 1.8",
    ),
    "other heads": (
        "lightningdit",
        "feat_rope.freqs_cos",
        lambda a: a[:, :10],
        "divides the width 48; got heads of 10",
    ),
    "infinite": (
        "repa",
        "blocks.1.attn.proj.bias",
        infinite,
        "blocks.1.attn.proj.bias has a number that is not finite",
    ),
    "integers": ("jit", "t_embedder.mlp.2.bias", lambda a: a.astype(int), "t_embedder.mlp.2.bias of int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_state_dict_is_exactly_that_of_the_network(case):
    name, key, value, message = BAD[case]
    with pytest.raises(UserError, match=message):
        check(name, changed(name, key, value))


@pytest.mark.parametrize("name", CASES)
def test_the_weights_of_others_are_refused(name):
    """As they are told apart by what they hold: DiT, SiT and REPA have the same tensors."""
    alike = ("sit", "dit", "repa")
    for other in CASES:
        if other != name and not (name in alike and other in alike):
            with pytest.raises(UserError, match=r"expected a state dict with|are not the weights of"):
                check(name, random_state(other))


def test_doubled_channels_are_not_repas():
    """SiT and DiT return a second half of channels, REPA none."""
    with pytest.raises(UserError, match="of 16 outputs, for 4 channels in patches of 2 x 2; got 32"):
        check("repa", random_state("sit"))


def test_jit_of_512_pixels_is_refused():
    """Its noise has scale 2."""
    with pytest.raises(UserError, match="JiT for images of 258 x 258 learned from noise of scale 2"):
        check("jit", random_state("jit", CASES["jit"].sizes._replace(side=43, patch=6)))


def test_class_names(tmp_path):
    assert class_names(3) == ("0", "1", "2")
    ids = class_names(1000)  # the list of tensorflow-datasets, which the tests have
    assert len(set(ids)) == 1000
    assert (ids[0], ids[1], ids[-1]) == ("n01440764", "n01443537", "n15075141")
    file = tmp_path / "names.txt"
    file.write_text("cat\n dog \nbird\n")
    assert class_names(3, str(file)) == ("cat", "dog", "bird")
    for text, message in (
        ("cat\ndog", "expected 3 names of classes, one in each line of .*; got 2"),
        ("cat\ndog\ncat", "names of classes must differ .* has 'cat'"),
        ("cat\n\ndog", "not be empty; .* has ''"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            class_names(3, str(file))
    with pytest.raises(UserError, match="cannot read the names of classes"):
        class_names(3, str(tmp_path / "none.txt"))
