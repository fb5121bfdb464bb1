"""Released networks: their tensors are those of the papers' code, and a converted one is the same function."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import config
from flowguide.cli.config_flag import load_config
from flowguide.condition import Condition, given
from flowguide.convert import FAMILIES, Sizes, layout_of, model_of
from flowguide.convert.parts import shapes, to_params, to_state
from flowguide.convert.runs import config_of
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label, Vector, Vectors
from tests.support import released
from tests.support.released import CASES, doubled, random_state

NAMES = [str(i) for i in range(1000)]
# As listed from the authors' own modules: tensors, and numbers in them.
PUBLISHED = {
    "sit XL": ("sit", Sizes(1152, 28, 16, 2, 16, 4, 8, 1000), 292, 675_129_632),
    "sit L": ("sit", Sizes(1024, 24, 16, 2, 16, 4, 8, 1000), None, 458_102_816),
    "sit B": ("sit", Sizes(768, 12, 12, 2, 16, 4, 8, 1000), None, 130_512_416),
    "sit S": ("sit", Sizes(384, 12, 6, 2, 16, 4, 8, 1000), None, 32_963_360),
    "dit XL": ("dit", Sizes(1152, 28, 16, 2, 16, 4, 8, 1000), 292, 675_129_632),
    "lightningdit XL": ("lightningdit", Sizes(1152, 28, 16, 1, 16, 32, 32, 1000), 351, 675_293_600),
    "jit B": ("jit", Sizes(768, 12, 12, 16, 16, 3, 3, 1000, 128, 32, 4), 183, 131_320_320),
    "jit L": ("jit", Sizes(1024, 24, 16, 16, 16, 3, 3, 1000, 128, 32, 8), 351, 459_139_808),
    "jit H": ("jit", Sizes(1280, 32, 16, 16, 16, 3, 3, 1000, 256, 32, 10), 463, 952_842_048),
    # Without its projectors, which have 2048·1152 + 2048² + 768·2048 weights and 2·2048 + 768 biases.
    "repa XL": ("repa", Sizes(1152, 28, 16, 2, 16, 4, 4, 1000), 292, 683_242_512 - 8_131_328),
}
# Some of them by name.
SHAPES = {
    "sit XL": {
        "pos_embed": (1, 256, 1152),
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "t_embedder.mlp.0.weight": (1152, 256),
        "t_embedder.mlp.2.bias": (1152,),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "blocks.27.attn.qkv.weight": (3456, 1152),
        "blocks.0.mlp.fc1.weight": (4608, 1152),
        "blocks.0.mlp.fc2.weight": (1152, 4608),
        "blocks.13.adaLN_modulation.1.weight": (6912, 1152),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
        "final_layer.linear.weight": (32, 1152),
    },
    "repa XL": {"final_layer.linear.weight": (16, 1152), "final_layer.linear.bias": (16,)},
    "lightningdit XL": {
        "x_embedder.proj.weight": (1152, 32, 1, 1),
        "feat_rope.freqs_cos": (256, 72),
        "feat_rope.freqs_sin": (256, 72),
        "blocks.5.norm2.weight": (1152,),
        "blocks.5.mlp.w12.weight": (6144, 1152),
        "blocks.5.mlp.w3.weight": (1152, 3072),
        "final_layer.norm_final.weight": (1152,),
    },
    "jit B": {
        "in_context_posemb": (1, 32, 768),
        "x_embedder.proj1.weight": (128, 3, 16, 16),
        "x_embedder.proj2.weight": (768, 128, 1, 1),
        "x_embedder.proj2.bias": (768,),
        "blocks.11.attn.q_norm.weight": (64,),
        "blocks.11.attn.k_norm.weight": (64,),
        "blocks.11.mlp.w12.weight": (4096, 768),
        "final_layer.linear.weight": (768, 768),
    },
}


@pytest.mark.parametrize("each", PUBLISHED)
def test_tensors_are_those_of_the_published_networks(each):
    name, sizes, tensors, numbers = PUBLISHED[each]
    found = shapes(FAMILIES[name].parts(sizes), sizes.depth)
    assert tensors in (None, len(found))
    assert sum(map(math.prod, found.values())) == numbers
    assert SHAPES.get(each, {}).items() <= found.items()


@pytest.mark.thorough
@pytest.mark.parametrize("each", ["sit XL", "dit XL", "repa XL", "lightningdit XL", "jit H"])
def test_the_largest_networks_convert(each):
    """On shapes alone: the parameters are those of the network here, and lead back to the tensors."""
    name, sizes, *_ = PUBLISHED[each]
    parts = FAMILIES[name].parts(sizes)
    expected = shapes(parts, sizes.depth)
    state = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in expected.items()}
    params = jax.eval_shape(partial(to_params, parts, sizes.depth), state)
    assert params == jax.eval_shape(model_of(FAMILIES[name], sizes, NAMES).network.init, jax.random.key(0))
    back = jax.eval_shape(partial(to_state, parts, sizes.depth), params)
    assert {key: a.shape for key, a in back.items()} == expected


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_a_converted_network_is_the_released_one(name):
    """Random numbers in every tensor; classes, ∅ and times differ in the batch."""
    case, state = CASES[name], random_state(name)
    model = model_of(FAMILIES[name], case.sizes, NAMES[:10])
    params = to_params(FAMILIES[name].parts(case.sizes), case.sizes.depth, state)
    x = np.random.default_rng(1).normal(size=(4, *model.info.shape)).astype(np.float32)
    t, y = np.array([0.02, 0.37, 0.7, 0.98], np.float32), np.array([3, 10, 0, 9])
    c = Condition({"label": jnp.asarray(y % 10)}, {"label": jnp.asarray(y < 10)})
    found = model.network.velocity(params, jnp.asarray(t), jnp.asarray(x), c)
    expected = case.velocity(doubled(state), t.astype(np.float64), x.astype(np.float64), y)
    for one, other in zip(np.asarray(found), expected, strict=True):  # DiT's velocities grow as 1/t
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


def test_the_variances_of_a_dit_are_kept():
    """The second half of its channels, for the sampler of the chain: at the time of step 300."""
    sizes, state = CASES["dit"].sizes, random_state("dit")
    network = model_of(FAMILIES["dit"], sizes, NAMES[:10]).network
    assert network.ancestral is not None
    params = to_params(FAMILIES["dit"].parts(sizes), sizes.depth, state)
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[300]
    scale = np.sqrt(signal) + np.sqrt(1 - signal)
    x, t = np.random.default_rng(1).normal(size=(2, 6, 6, 4)), np.full(2, np.sqrt(signal) / scale)
    c = given({"label": jnp.array([3, 9])})
    found = network.ancestral.velocity(params, jnp.asarray(t, jnp.float32), jnp.asarray(x, jnp.float32), c)
    expected = released.sit(doubled(state), np.full(2, 300.0), x * scale, np.array([3, 9]), 4)
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_is_the_same_state_dict(name):
    sizes, state = CASES[name].sizes, random_state(name)
    parts = FAMILIES[name].parts(sizes)
    params = to_params(parts, sizes.depth, state)
    back = to_state(parts, sizes.depth, params)
    if name == "sit":  # the channels that mean nothing are zeros
        for kind in ("weight", "bias"):
            rows = state[f"final_layer.linear.{kind}"].reshape(4, 8, -1)
            rows[:, 4:] = 0
    assert back.keys() == state.keys()
    for key, a in state.items():
        np.testing.assert_allclose(back[key], a, rtol=0, atol=1e-6, err_msg=key)
    again = to_params(parts, sizes.depth, back)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=0, atol=1e-6), params, again))


@pytest.mark.parametrize("name", CASES)
def test_the_layout_of_a_config_is_found(name):
    sizes = CASES[name].sizes
    c, info = config_of(FAMILIES[name], sizes), model_of(FAMILIES[name], sizes, NAMES[:10]).info
    c.network.update({"dtype": "bfloat16", "remat": True})  # change no number of the network's
    assert layout_of(c, info, name) == (name, sizes)
    first = "sit" if name == "repa" else name  # a REPA's weights have become a SiT's
    assert layout_of(c, info)[0] == first


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("sit_xl2_imagenet256", "sit XL"),
        ("sit_b2_imagenet256", "sit B"),
        ("lightningdit_xl1_imagenet256", "lightningdit XL"),
        ("jit_b16_imagenet256", "jit B"),
    ],
)
def test_configs_of_released_networks_have_their_layout(name, each):
    family, sizes, *_ = PUBLISHED[each]
    side = sizes.side * sizes.patch
    info = DataInfo("imagenet", Vectors((side, side, sizes.channels)), {"label": Label(tuple(NAMES))})
    assert layout_of(config.complete(load_config(name)), info) == (family, sizes)


def test_a_network_that_none_released_has_no_layout():
    c, info = (
        config_of(FAMILIES["jit"], CASES["jit"].sizes),
        model_of(FAMILIES["jit"], CASES["jit"].sizes, NAMES[:10]).info,
    )

    def refused(message, layout=None, info=info, **changes):
        other = c.copy_and_resolve_references()
        other.network.update(changes)
        with pytest.raises(UserError, match=message):
            layout_of(other, info, layout)

    refused("not laid out as jit: network.qk_norm is False, not True$", qk_norm=False)
    refused("not laid out as jit: network.registers is 2, not 0; network.time_scale is 1000.0, not 1.0$", **OTHER)
    refused("not laid out as jit: in_context_posemb would be empty$", class_tokens=0, class_tokens_from=0)
    refused("not laid out as sit: .*output.name is 'x1', not 'velocity'", "sit")
    refused("'dit' on square images or latents; got 'mlp' on", name="mlp")
    conditioned = c.copy_and_resolve_references()
    conditioned.target = {"name": "guidance_free"}
    with pytest.raises(UserError, match="one of the target 'guidance_free', which also takes γ"):
        layout_of(conditioned, info)
    for examples in (Vectors((9, 3)), Images((9, 6, 3))):
        refused("'dit' on square images or latents; got 'dit' on", info=info._replace(examples=examples))
    for fields in ({}, {"kind": Label(("a", "b"))}, {"label": Vector(3)}, {**info.fields, "size": Vector(1)}):
        refused("a run whose only condition is the class, called 'label'; got", info=info._replace(fields=fields))


OTHER = {"registers": 2, "time_scale": 1000.0}
