"""Every option of the diffusion transformer against its definition in NumPy, on grids of odd sides."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.condition import Condition
from flowguide.flops import flops
from flowguide.networks import SIZES, DiT, Perturbation, as_network, attention, count_parameters
from flowguide.networks.positions import dit_positions, rotated
from flowguide.schema import Label
from flowguide.training import parallel
from tests.support import dit_by_hand
from tests.support.tiny_networks import BATCH, FIELDS, build, draw, full_condition, noisy

SIZE = {"patch": 2, "width": 24, "depth": 3, "heads": 2}
IMAGE, SIGNAL, VOLUME = (6, 10, 2), (10, 2), (6, 4, 2, 2)
LABELS = {name: FIELDS[name] for name in ("kind", "place")}
SIT = {"time_scale": 1.0, "time_features": 10, "positions": "dit"}
LIGHTNING = {**SIT, "rope": True, "norm": "rms", "mlp": "swiglu"}
JIT = {**LIGHTNING, "qk_norm": True, "bottleneck": 5, "class_tokens": 3, "class_tokens_from": 1}
JOINT = {"context": "joint", "norm": "rms", "mlp": "swiglu", "qk_norm": True, "rope": True, "registers": 2}

# (shape, fields, settings)
CASES = {
    "today": (IMAGE, FIELDS, {}),
    "sit": (IMAGE, LABELS, SIT),
    "lightning": (IMAGE, LABELS, LIGHTNING),
    "jit": (IMAGE, LABELS, JIT),
    "jit-signal": (SIGNAL, LABELS, JIT | {"class_tokens_from": 0}),
    "jit-volume": (VOLUME, LABELS, JIT),
    "no table": (IMAGE, FIELDS, {"positions": "none", "rope": True, "qk_norm": True, "registers": 2}),
    "cross": (IMAGE, FIELDS, {"context": "cross", "shared_film": True, "qk_norm": True, "registers": 1}),
    "joint": (IMAGE, FIELDS, {"context": "joint"}),
    "tokens": (IMAGE, LABELS, {"field_tokens": True}),
    "tokens-cross": (SIGNAL, FIELDS, {"field_tokens": True, "context": "cross"}),
    "tokens-joint": (IMAGE, FIELDS, {"field_tokens": True, "context": "joint", "qk_norm": True}),
    "joint-all": (VOLUME, FIELDS, {**JOINT, "shared_film": True, "class_tokens": 2, "class_tokens_from": 2}),
}
# The text of the last block of joint attention has nothing to go to.
UNREAD = {"text/attention/out", "text/attention/q_norm", "text/hidden", "text/out", "text/norm_2"}
WEAK = {"identity": ("identity",), "blurred": ("blurred", 0.8)}


def condition(fields, **changed):
    """A field is absent in one example each, and the text of example 1 is empty."""
    c = full_condition()
    value = {name: c.value[name] for name in fields}
    present = {name: jnp.arange(BATCH) != 2 + (name == "text") for name in fields}
    if "text" in fields:
        value["text"] = value["text"].at[1].set(0)
    return Condition({**value, **changed}, present)


class Case:
    """A network of the table with noisy parameters, inputs, and its velocity and gradient, computed once."""

    def __init__(self, name):
        self.shape, self.fields, self.settings = CASES[name]
        self.network = self.build()
        self.params = noisy(self.network.init(jax.random.key(0)))
        self.t, self.x = jnp.linspace(0.1, 0.9, BATCH), draw(1, BATCH, *self.shape)
        self.c = condition(self.fields)

        def loss(params, t, x, c):
            u = self.network.velocity(params, t, x, c)
            return jnp.sum(jnp.square(u - x)), u

        self.program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, self.u), self.gradient = self.program(self.params, self.t, self.x, self.c)

    def build(self, **options):
        return build("dit", self.fields, self.shape, **SIZE, **{**self.settings, **options})

    def by_hand(self, **options):
        small = {name: SIZE[name] for name in ("patch", "heads")}
        return dit_by_hand.forward(self.params, self.t, self.x, self.c, **small, **self.settings, **options)


@pytest.fixture(scope="module")
def cases():
    known = {}

    def case(name) -> Case:
        if name not in known:
            known[name] = Case(name)
        return known[name]

    return case


def distance(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_the_velocity_is_that_of_the_definition(cases, name):
    case = cases(name)
    assert distance(case.u, case.by_hand()) < 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_every_block_has_a_gradient(cases, name):
    last = SIZE["depth"] - 1
    for path, g in jax.tree_util.tree_flatten_with_path(cases(name).gradient)[0]:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(g).all(), place
        if not place.startswith("blocks/"):
            # Nulls are read where a field is absent; the last word's position by the example with four words.
            assert np.abs(g).max() > 0, place
            continue
        largest = np.abs(np.asarray(g)).reshape(len(g), -1).max(axis=1)
        unread = place.removeprefix("blocks/").rsplit("/", 1)[0] in UNREAD
        assert (largest[: last + (not unread)] > 0).all(), place
        if unread:
            assert largest[last] == 0, place


@pytest.mark.thorough
@pytest.mark.parametrize("kind", WEAK)
@pytest.mark.parametrize("name", ["jit", "cross", "joint-all"])
def test_a_perturbation_changes_the_tokens_of_the_grid_alone(cases, name, kind):
    """Class tokens, registers and words attend as before."""
    case = cases(name)
    weakened = case.network.perturbed(Perturbation(attention=kind, blur=0.8))
    got = jax.jit(weakened)(case.params, case.t, case.x, case.c)
    assert distance(got, case.by_hand(weaken=WEAK[kind])) < 1e-4
    assert distance(got, case.u) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_network_is_zero(cases, name):
    case = cases(name)
    (_, u), _ = case.program(case.network.init(jax.random.key(1)), case.t, case.x, case.c)
    np.testing.assert_array_equal(u, 0.0)


@pytest.mark.parametrize("name", [name for name, (_, fields, _) in CASES.items() if "text" in fields])
def test_padded_and_absent_words_have_no_influence(cases, name):
    """Neither on the velocity nor on any gradient."""
    case = cases(name)
    text = case.c.value["text"]
    assert not bool(text[1].any())  # empty
    moved = jax.tree.map(lambda a: a, case.params)
    table = moved["condition"]["fields"]["text"]["table"]
    moved["condition"]["fields"]["text"]["table"] = table.at[0].add(50.0)  # every padded word
    other = condition(case.fields, text=text.at[3].set(jnp.array([1, 1, 0, 3])))
    (_, u), gradient = case.program(moved, case.t, case.x, other)
    np.testing.assert_array_equal(u, case.u)
    jax.tree.map(np.testing.assert_array_equal, gradient, case.gradient)
    shown = condition(case.fields, text=text.at[0].set(jnp.array([1, 2, 3, 0])))
    (_, u), _ = case.program(case.params, case.t, case.x, shown)
    moved_by = np.abs(u - case.u).max(axis=tuple(range(1, u.ndim)))
    assert moved_by[0] > 1e-3
    np.testing.assert_allclose(moved_by[1:], 0, atol=1e-5)


@pytest.mark.thorough
def test_how_blocks_are_applied_changes_nothing(cases):
    """Two scans of two and of one block, whose bodies hold two."""
    case = cases("joint-all")
    other = case.build(remat=True, unroll=2)

    def loss(params):
        return jnp.sum(jnp.square(other.velocity(params, case.t, case.x, case.c) - case.x))

    gradient = jax.jit(jax.grad(loss))(case.params)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(case.gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("name", ["jit", "cross", "joint-all"])
def test_bfloat16_stays_close(cases, name):
    case = cases(name)
    half = case.build(dtype="bfloat16")
    got = jax.jit(half.velocity)(case.params, case.t, case.x, case.c)
    assert got.dtype == jnp.float32
    assert 1e-4 < distance(got, case.u) < 0.05


def test_parameters_may_be_split_over_devices(cases):
    """The blocks before and after the class tokens are parts of one stack, whose leaves are split."""
    case = cases("jit")
    layout = parallel.fsdp(jax.devices()[:2], min_size=1)
    params = parallel.lay_out(case.params, layout)
    assert not params["blocks"]["film"]["kernel"].sharding.is_fully_replicated

    def velocity(params):
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            return case.network.velocity(params, case.t, case.x, case.c)

    np.testing.assert_allclose(jax.jit(velocity)(params), case.u, rtol=1e-4, atol=1e-4)


def test_the_order_of_positions_is_that_of_dit():
    """[sin column, cos column, sin row, cos row]: written out for a token."""
    table = dit_positions((3, 5), 8)
    row, column = 2, 3
    want = [f(place * w) for place in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
    np.testing.assert_allclose(table[row * 5 + column], want, atol=1e-6)


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_rotations_see_only_how_far_tokens_are_apart(grid):
    """A query and a key have the same product wherever the pair is, and rotations keep lengths."""
    tokens, size = int(np.prod(grid)), 4 * len(grid)
    q, k = (jnp.broadcast_to(draw(i, 1, 1, 1, size), (1, tokens, 1, size)) for i in (0, 1))
    products = np.einsum("td,sd->ts", rotated(q, grid)[0, :, 0], rotated(k, grid)[0, :, 0])
    places, seen = list(np.ndindex(grid)), {}
    for t, here in enumerate(places):
        for s, there in enumerate(places):
            apart = tuple(np.subtract(here, there))
            assert abs(products[t, s] - seen.setdefault(apart, products[t, s])) < 1e-4
    assert np.std(list(seen.values())) > 0.1
    np.testing.assert_allclose(np.linalg.norm(rotated(q, grid), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)


# Numbers of released networks that flowguide's has as parameters: without fixed tables, and with 4 of SiT's 8 channels.
RELEASED = {
    "SiT-XL/2": ((32, 32, 4), 2, "XL", SIT, 675_129_632 - 256 * 1152 - 16 * (1152 + 1)),
    "LightningDiT-XL/1": ((16, 16, 32), 1, "XL", LIGHTNING, 675_293_600 - 256 * 1152 - 2 * 256 * 72),
    "JiT-B/16": ((256, 256, 3), 16, "B", {**JIT, "bottleneck": 128}, 131_320_320 - 256 * 768),
    "JiT-L/16": ((256, 256, 3), 16, "L", {**JIT, "bottleneck": 128}, 459_139_808 - 256 * 1024),
    "JiT-H/16": ((256, 256, 3), 16, "H", {**JIT, "bottleneck": 256}, 952_842_048 - 256 * 1280),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_networks_have_as_many_parameters(name):
    shape, patch, size, settings, numbers = RELEASED[name]
    settings = {**settings, "time_features": 256}
    if "JiT" in name:
        settings["class_tokens"] = 32
    fields = {"label": Label(tuple(map(str, range(1000))))}
    network = as_network(lambda rngs: DiT(shape, fields, patch=patch, **SIZES[size], **settings, rngs=rngs))
    assert count_parameters(jax.eval_shape(network.init, jax.random.key(0))) == numbers


def test_the_parameters_of_the_default_have_their_names_and_shapes():
    """Checkpoints hold them."""
    shapes = {
        "time/hidden": (128, 24),
        "time/out": (24, 24),
        "inlet": (8, 24),
        "blocks/film": (3, 24, 144),
        "blocks/attention/qkv": (3, 24, 72),
        "blocks/attention/context_kv": (3, 24, 48),
        "blocks/attention/out": (3, 24, 24),
        "blocks/hidden": (3, 24, 96),
        "blocks/out": (3, 96, 24),
        "film": (24, 48),
        "outlet": (24, 8),
    }
    want = {f"{name}/kernel": shape for name, shape in shapes.items()}
    want |= {f"{name}/bias": shape[:-2] + shape[-1:] for name, shape in shapes.items()}
    params = jax.eval_shape(build("dit", FIELDS, IMAGE, **SIZE).init, jax.random.key(0))
    del params["condition"]
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    assert found == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm must be one of 'layer', 'rms'; got 'batch'"),
        ({"mlp": "relu"}, "mlp must be one of 'gelu', 'swiglu'; got 'relu'"),
        ({"context": "add"}, "context must be one of 'keys', 'cross', 'joint'; got 'add'"),
        ({"attention": "flash"}, "attention must be one of 'xla', 'cudnn'; got 'flash'"),
        ({"positions": "learned"}, "positions must be one of 'sincos', 'dit', 'none'; got 'learned'"),
        ({"context": "joint", "fields": LABELS}, "context='joint' is how words .* neither: add .*, set field_to"),
        ({"field_tokens": True, "fields": {}}, "field_tokens needs a condition with a class, a vector or words; got"),
        ({"context": "cross", "fields": {}}, "context='cross' is how words"),
        ({"rope": True, "heads": 4}, "divisible by 4; got width=24, heads=4, which gives 6: try width=32"),
        ({"positions": "none", "heads": 5}, "divisible by heads.*heads=5"),
        ({"class_tokens_from": 1}, "got class_tokens_from=1, depth=3, class_tokens=0: set class_tokens, or lower"),
        ({"class_tokens": 2, "class_tokens_from": 3}, "got class_tokens_from=3, depth=3, class_tokens=2"),
        ({"class_tokens": -1}, "class_tokens must be a whole number of at least 0; got -1"),
        ({"registers": 0.5}, "registers must be a whole number of at least 0; got 0.5"),
        ({"bottleneck": -2}, "bottleneck must be a whole number of at least 0; got -2"),
        ({"time_features": 0}, "time_features must be a whole number of at least 2; got 0"),
        ({"time_features": 5}, "time_features must be even and time_scale positive; got time_features=5"),
        ({"time_scale": 0.0}, "time_scale=0.0"),
        ({"time_scale": float("nan")}, "time_scale=nan"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("dit", **{"fields": FIELDS, "shape": IMAGE, **SIZE, **options})


def test_a_table_of_positions_may_be_left_out_where_it_does_not_fit():
    """Three axes need a multiple of 6; without a table, heads alone count."""
    build("dit", LABELS, VOLUME, **{**SIZE, "width": 16}, positions="none")
    with pytest.raises(ValueError, match="divisible by heads and by 6; got width=16"):
        build("dit", LABELS, VOLUME, **{**SIZE, "width": 16}, positions="dit")


def test_options_count_their_operations():
    """A block of each kind, its products written out."""

    def block(batch=BATCH, tokens=15, width=24, words=4, **options):
        def of(depth):
            network = build("dit", FIELDS, IMAGE, **{**SIZE, "depth": depth}, **options)
            params = jax.eval_shape(network.init, jax.random.key(0))
            t, x = jax.ShapeDtypeStruct((batch,), jnp.float32), jax.ShapeDtypeStruct((batch, *IMAGE), jnp.float32)
            return flops(network.velocity, params, t, x, full_condition())

        return (of(2) - of(1)) // (2 * batch)

    film, attend, linear = 24 * 144, 2 * 15 * 24, 24 * 24
    mlp, gated = 15 * 8 * linear, 15 * 3 * 24 * 64
    assert block(context="cross") == film + 15 * (4 * linear + attend) + mlp + (
        15 * 2 * linear + 4 * 2 * linear + 2 * 15 * 4 * 24
    )
    assert block(context="joint") == 2 * film + 19 * (4 * linear + 2 * 19 * 24) + mlp * 19 // 15
    keys = 4 * 2 * linear + 15 * 2 * 4 * 24
    assert block(mlp="swiglu", shared_film=True, rope=True) == 15 * (4 * linear + attend) + gated + keys
    assert block(registers=2) == film + 17 * (4 * linear + 2 * 17 * 24 + 2 * 4 * 24 + 8 * linear) + 4 * 2 * linear


@pytest.fixture
def kernels(monkeypatch):
    """What chooses the kernel, without memory of earlier choices. cuDNN needs a GPU, so stand-ins take its place."""
    yield monkeypatch
    attention.cudnn_refusal.cache_clear()
    attention._warn_once.cache_clear()


def test_without_a_gpu_it_is_xla_and_says_so_once(cases, kernels):
    case = cases("jit")
    other = case.build(attention="cudnn")
    with pytest.warns(UserWarning, match="attention='cudnn' is computed as 'xla': it needs an NVIDIA GPU") as seen:
        got = jax.jit(other.velocity)(case.params, case.t, case.x, case.c)
    assert len(seen) == 1
    with warnings.catch_warnings(action="error"):
        jax.eval_shape(other.velocity, case.params, case.t, case.x[:, :4], case.c)
    np.testing.assert_allclose(got, case.u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_on_a_gpu_it_is_cudnn_for_half_precision(kernels, dtype):
    kernels.setattr(jax, "default_backend", lambda: "gpu")
    kernels.setattr(attention, "_cudnn", lambda q, k, v, mask: q + 2 * k + 3 * v)
    q, k, v = (draw(i, 2, 5, 3, 8).astype(dtype) for i in range(3))
    if dtype == "bfloat16":
        with warnings.catch_warnings(action="error"):
            np.testing.assert_array_equal(attention.cudnn_attend(q, k, v), q + 2 * k + 3 * v)
        return
    with pytest.warns(UserWarning, match="needs bfloat16 or float16, .* float32: set dtype='bfloat16'"):
        got = attention.cudnn_attend(q, k, v)
    np.testing.assert_allclose(got, jax.nn.dot_product_attention(q, k, v), atol=1e-5)


def test_what_cudnn_refuses_is_xla(kernels):
    """Odd lengths with a mask, say, have no gradient there: the probe compiles it, with the shapes of the call."""
    asked = []

    def refuses(q, k, v, mask):
        asked.append((q.shape, k.shape, None if mask is None else mask.shape))
        raise NotImplementedError("Unsupported sequence length\nQ 5")

    kernels.setattr(jax, "default_backend", lambda: "gpu")
    kernels.setattr(attention, "_cudnn", refuses)
    q, k = draw(0, 2, 5, 3, 8).astype("bfloat16"), draw(1, 2, 7, 3, 8).astype("bfloat16")
    mask = jnp.arange(7) < jnp.array([[4], [7]])
    with pytest.warns(UserWarning, match="'xla': NotImplementedError: Unsupported sequence length Q 5"):
        got = attention.cudnn_attend(q, k, k, mask)
    want = jax.nn.dot_product_attention(q, k, k, mask=mask[:, None, None, :])
    np.testing.assert_allclose(got.astype("float32"), want.astype("float32"), atol=1e-2)
    assert asked == [((1, 5, 3, 8), (1, 7, 3, 8), (1, 7))]
