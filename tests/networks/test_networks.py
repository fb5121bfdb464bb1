import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.condition import Condition, given, null
from flowguide.networks import NETWORKS
from flowguide.schema import Label
from tests.support.tiny_networks import BATCH, FIELDS, build, full_condition, inputs


def absent(*names: str) -> Condition:
    """The full condition, with the fields ``names`` absent in the examples 0 and 2."""
    c = full_condition()
    present = {k: p.at[jnp.array([0, 2])].set(k not in names) for k, p in c.present.items()}
    return Condition(c.value, present)


@pytest.mark.thorough
def test_shape_dtype_and_zero_at_the_start(each):
    _, shape, _, fresh, params, velocity = each
    (t, x), c = inputs(shape), full_condition()
    for p in (fresh, params):
        u = velocity(p, t, x, c)
        assert u.shape == x.shape
        assert u.dtype == jnp.float32
    np.testing.assert_array_equal(velocity(fresh, t, x, c), 0.0)
    assert float(jnp.std(velocity(params, t, x, c))) > 1e-2


@pytest.mark.thorough
def test_values_of_absent_fields_have_no_influence(tiny, gradient):
    _, _, _, params, velocity = tiny
    (t, x), c = inputs(), absent(*FIELDS)
    rubbish = {"kind": -7, "place": jnp.nan, "text": 99}
    gone = {k: ~c.present[k].reshape(-1, *(1,) * (v.ndim - 1)) for k, v in c.value.items()}
    other = Condition({k: jnp.where(gone[k], rubbish[k], v) for k, v in c.value.items()}, c.present)
    gradients = (gradient(params, t, x, c, jnp.ones(BATCH), x) for c in (c, other))
    jax.tree.map(np.testing.assert_array_equal, *gradients)
    np.testing.assert_array_equal(velocity(params, t, x, c), velocity(params, t, x, other))


@pytest.mark.parametrize("field", list(FIELDS))
def test_every_field_matters_where_it_is_present(each, field):
    _, shape, _, _, params, velocity = each
    (t, x), c = inputs(shape), full_condition()
    change = velocity(params, t, x, c) - velocity(params, t, x, absent(field))
    moved = jnp.abs(change).max(axis=tuple(range(1, x.ndim)))
    assert float(moved[jnp.array([0, 2])].min()) > 1e-3
    np.testing.assert_allclose(moved[jnp.array([1, 3])], 0.0, atol=1e-5)


def test_null_tokens_learn_from_absent_examples_alone(tiny, gradient):
    _, _, fresh, params, _ = tiny
    t, x = inputs()
    everything, first = jnp.ones(BATCH), jnp.eye(BATCH)[0]
    for name in FIELDS:
        table = "hidden" if name == "place" else "table"
        assert float(jnp.abs(fresh["condition"]["fields"][name]["null"]).min()) > 0
        present = gradient(params, t, x, full_condition(), everything, x)["condition"]["fields"][name]
        dropped = gradient(params, t, x, absent(name), first, x)["condition"]["fields"][name]
        assert float(jnp.abs(present["null"]).max()) == 0.0
        assert float(jnp.abs(dropped["null"]).max()) > 0.0
        chex.assert_trees_all_equal(dropped[table], jax.tree.map(jnp.zeros_like, dropped[table]))


def test_an_example_depends_on_its_own_inputs_alone(each):
    _, shape, _, _, params, velocity = each
    (t, x), c = inputs(shape), absent("kind", "text")
    order = jnp.array([2, 0, 3, 1])
    shuffled = velocity(params, *jax.tree.map(lambda a: a[order], (t, x, c)))
    np.testing.assert_allclose(shuffled, velocity(params, t, x, c)[order], atol=1e-5)


def test_padding_has_no_influence_on_the_image(tiny):
    name, _, _, params, velocity = tiny
    if name == "mlp":
        pytest.skip("the mlp reads the summary only")
    (t, x), c = inputs(), full_condition()
    moved = jax.tree.map(lambda a: a, params)
    # The position of the last word is read by the one example whose text is that long.
    position = moved["condition"]["fields"]["text"]["position"]
    moved["condition"]["fields"]["text"]["position"] = position.at[3].add(1.0)
    change = jnp.abs(velocity(moved, t, x, c) - velocity(params, t, x, c)).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(change > 0, [False, False, False, True])


def test_bfloat16_keeps_float32_parameters_and_a_close_result(tiny):
    name, _, _, params, velocity = tiny
    (t, x), c = inputs(), full_condition()
    half = build(name, dtype="bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(half.init, jax.random.key(0)), params)
    want, got = velocity(params, t, x, c), jax.jit(half.velocity)(params, t, x, c)
    assert got.dtype == jnp.float32
    assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.03
    assert bool(jnp.any(got != want))


def test_changing_conditions_do_not_recompile(tiny):
    _, network, _, params, _ = tiny
    t, x = inputs()
    traces = []

    @jax.jit
    def velocity(*args):
        traces.append(args)
        return network.velocity(*args)

    for c in (full_condition(), absent("kind"), null(full_condition())):
        velocity(params, t, x, c)
    assert len(traces) == 1


@pytest.mark.thorough
def test_gradient_reaches_every_parameter_after_three_steps(tiny, gradient):
    """Zero layers hide what is before them: the last one learns first, then the gates, then everything."""
    _, _, params, _, _ = tiny
    (t, x), c = inputs(), absent(*FIELDS)
    descend = jax.jit(lambda params, g: jax.tree.map(lambda p, g: p - 0.01 * g, params, g))

    def slope(params):
        return gradient(params, t, x, c, jnp.ones(BATCH), jnp.roll(x, 1, 1))

    for _ in range(3):
        params = descend(params, slope(params))
    flat, _ = jax.tree_util.tree_flatten_with_path(slope(params))
    still = [jax.tree_util.keystr(path) for path, g in flat if float(jnp.abs(g).max()) == 0.0]
    assert still == []


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_fields_is_an_unconditional_network(name):
    network = build(name, fields={})
    t, x = inputs()
    for c in (Condition({}, {}), given({})):
        abstract = jax.eval_shape(lambda key, c=c: network.velocity(network.init(key), t, x, c), jax.random.key(0))
        assert abstract.shape == x.shape


@pytest.mark.thorough
def test_a_single_field_may_come_without_its_name():
    network = build("mlp", fields={"digit": Label(("0", "1"))})
    params, (t, x), digit = network.init(jax.random.key(0)), inputs(), jnp.array([0, 1, 1, 0])
    params["outlet"]["kernel"] += 0.1
    bare, named = given(digit), given({"digit": digit})
    np.testing.assert_array_equal(network.velocity(params, t, x, bare), network.velocity(params, t, x, named))


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (given({"kind": jnp.zeros(BATCH, int)}), r"fields \['kind', 'place', 'text'\]; the condition has \['kind'\]"),
        (given(jnp.zeros(BATCH, int)), "1 arrays without names"),
        (
            given(full_condition().value | {"place": jnp.zeros((BATCH, 5))}),
            r"'place': expected value \(4, 3\) and present \(4,\), got \(4, 5\)",
        ),
        (given(full_condition().value | {"kind": jnp.zeros(7, int)}), r"'kind': expected value \(4,\).*got \(7,\)"),
    ],
)
def test_wrong_fields_are_named(c, message):
    network = build("mlp")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.velocity, jax.eval_shape(network.init, jax.random.key(0)), *inputs(), c)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"multipliers": (1, 1, 1, 1)}, r"unet with 4 levels needs sides divisible by 8; got \(4, 4\): give"),
        ("unet", {"shape": (30, 15, 1)}, r"unet with 2 levels needs sides divisible by 2; got \(30, 15\): give fewer"),
        ("unet", {"shape": (4, 6, 5, 1)}, r"divisible by 2; got \(4, 6, 5\)"),
        ("unet", {"shape": (5, 1)}, r"divisible by 2; got \(5,\)"),
        ("unet", {"attention": (3,)}, r"among \[4, 2\]; got \(3,\)"),
        ("unet", {"attention": ()}, "token fields.*attention"),
        ("dit", {"patch": 3}, r"dit with patch=3 needs sides divisible by 3; got \(4, 4\): give a patch"),
        ("dit", {"shape": (4, 6, 5, 1)}, r"divisible by 2; got \(4, 6, 5\)"),
        ("dit", {"heads": 5}, "heads and by 4; got width=24, heads=5: try width=40"),
        ("dit", {"shape": (4, 4, 4, 1), "width": 16}, "heads and by 6; got width=16, heads=2: try width=18"),
        *((name, {"dtype": "int32"}, "'float32' or 'bfloat16'; got 'int32'") for name in NETWORKS),
    ],
)
def test_impossible_settings_are_refused_at_construction(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_typo_is_a_type_error(name):
    with pytest.raises(TypeError, match="widht"):
        build(name, widht=8)


@pytest.mark.thorough
@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_usual_image_sizes(name, side):
    options = {"attention": (side // 2,)} if name == "unet" else {}
    network = build(name, shape=(side, side, 3), **options)
    x, t = jnp.zeros((BATCH, side, side, 3)), jnp.zeros(BATCH)
    got = jax.eval_shape(lambda key: network.velocity(network.init(key), t, x, full_condition()), jax.random.key(0))
    assert got.shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"width": 0}, "width must be a whole number of at least 1; got 0"),
        ("mlp", {"depth": -1}, "depth must be a whole number of at least 1; got -1"),
        ("mlp", {"refine": -8}, "refine must be a whole number of at least 0; got -8"),
        ("mlp", {"width": 16.0}, "width must be a whole number of at least 1; got 16.0"),
        ("unet", {"width": float("nan")}, "width must be a whole number of at least 1; got nan"),
        ("unet", {"multipliers": (1, 0)}, "multipliers must be a whole number of at least 1; got 0"),
        ("unet", {"multipliers": ()}, "a U-Net has a level for each multiplier"),
        ("unet", {"blocks": 0}, "blocks must be a whole number"),
        ("unet", {"heads": 0}, "heads must be a whole number"),
        ("unet", {"heads": 3}, "got 4 channels and heads=3"),
        ("unet", {"attention": (-4,)}, "attention must be a whole number"),
        ("dit", {"patch": 0}, "patch must be a whole number"),
        ("dit", {"depth": 0}, "depth must be a whole number"),
        ("dit", {"heads": 0}, "heads must be a whole number"),
        ("dit", {"ratio": 0}, "ratio must be a whole number"),
        ("dit", {"unroll": -1}, "unroll must be a whole number"),
        ("unet", {"shape": (2,)}, r"unet takes signals \(T, C\), images .* and volumes .*; got shape \(2,\): use mlp"),
        ("dit", {"shape": (2,)}, r"dit takes signals .*; got shape \(2,\): use mlp"),
        ("dit", {"shape": (2,) * 5}, r"dit takes signals .*; got shape \(2, 2, 2, 2, 2\): use mlp"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)
