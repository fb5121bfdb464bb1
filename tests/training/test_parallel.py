"""Layouts: the same training on any number of devices, whole or split state, and replicas that stay equal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from flowguide import build, couplings, losses, paths, targets, times
from flowguide.config import default
from flowguide.errors import UserError
from flowguide.networks import MLP, DiT, Network, as_network
from flowguide.schema import Aligned, Batch, Images, Known, Label, Vectors
from flowguide.schema.examples import mirrored_where
from flowguide.training import ema, parallel
from flowguide.training.parallel import (
    abstract,
    data_parallel,
    fsdp,
    lay_out,
    parallelize,
    replicas_agree,
    split_axis,
)
from flowguide.training.step import ReadOnly, init_state, make_loss, make_step

SIZE, STEPS = 32, 20
FIELDS = {"a": Label(("x", "y", "z")), "b": Label(("x", "y"))}
NETWORK = as_network(lambda rngs: MLP((2,), FIELDS, width=16, depth=2, rngs=rngs))
RECIPE = losses.Recipe(paths.linear(), times.logit_normal())
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
LOSS = make_loss(NETWORK, RECIPE, lambda keys, x, coins: x, jax.random.key(1))


def batch(step):
    random = np.random.default_rng(step)
    value = {"a": random.integers(0, 3, SIZE).astype(np.int32), "b": random.integers(0, 2, SIZE).astype(np.int32)}
    x = random.standard_normal((SIZE, 2)).astype(np.float32) + value["a"][:, None]
    return Batch(x, value, np.arange(SIZE, dtype=np.int32))


LAYOUTS = {
    "data_parallel": data_parallel,
    "fsdp": lambda devices: fsdp(devices, min_size=1),
    "fsdp, replicated": lambda devices: fsdp(devices, len(devices) // 2, min_size=1),
}


def train(devices, accumulate=1, steps=STEPS, step_with=None, layout="data_parallel"):
    layout = LAYOUTS[layout](jax.devices()[:devices])
    state = lay_out(init_state(NETWORK, OPTIMIZER, jax.random.key(0)), layout)
    step = parallelize(layout, step_with or make_step(LOSS, OPTIMIZER, ema.constant(0.9), accumulate))
    for i in range(steps):
        state, metrics = step(state, batch(i))
        jax.block_until_ready(metrics)
    return state, metrics


@pytest.fixture(scope="module")
def alone():
    return train(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "devices", "accumulate"),
    [
        ("data_parallel", 2, 1),
        ("data_parallel", 8, 1),
        ("data_parallel", 1, 4),
        ("data_parallel", 2, 4),
        ("fsdp", 2, 1),
        ("fsdp", 8, 1),
        ("fsdp", 2, 4),
        ("fsdp, replicated", 8, 1),
    ],
)
def test_same_parameters_on_any_number_of_devices_and_parts(alone, layout, devices, accumulate):
    state, metrics = train(devices, accumulate, layout=layout)
    assert replicas_agree(state)
    assert int(state.step) == STEPS
    for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(metrics["loss"], alone[1]["loss"], rtol=1e-5)


@pytest.mark.thorough
def test_training_moves_the_parameters(alone):
    start = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.params, alone[0].params)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.thorough
def test_replicas_drift_without_the_mean_and_the_check_sees_it():
    step_with = make_step(LOSS, OPTIMIZER, ema.constant(0.9))
    state, _ = train(2, steps=2, step_with=lambda mean: step_with(lambda tree: tree))
    assert not replicas_agree(state)
    # Of a state that is split, the copies of each part.
    split = fsdp(jax.devices(), 4, min_size=1)
    for same in (True, False):
        parts = [np.full((2, 3), float(i % 4)) for i in range(8)]
        if not same:
            parts[6][1, 1] += 1
        place = split.shardings({"a": jnp.zeros((8, 3))})["a"]
        held = [jax.device_put(part, device) for part, device in zip(parts, split.mesh.devices.flat, strict=True)]
        assert replicas_agree([jax.make_array_from_single_device_arrays((8, 3), place, held)]) == same


@pytest.mark.thorough
def test_state_has_no_device_axis(alone):
    fresh = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, train(8, steps=1)[0])


@pytest.mark.thorough
def test_several_processes_would_compute_the_bits_of_pmap(monkeypatch):
    """pmap takes no arrays of other processes; what stands in for it is the same."""
    expected = train(4, steps=3)
    monkeypatch.setattr(parallel, "_of_one_process", lambda devices: False)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(train(4, steps=3)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["coupling", "others"])
def test_examples_are_paired_within_a_share_in_every_layout(which):
    """Where the program sees the whole batch it pairs as the devices would, each with its own part of it."""
    pairs, target = couplings.next_example(), targets.contrastive(0.5)
    if which == "coupling":
        pairs, target = couplings.minibatch(couplings.assigned(optax.assignment.hungarian_algorithm)), targets.plain()
    seen = {}
    for shares in (1, 4):
        recipe = RECIPE._replace(**{which: couplings.within(pairs, shares), "target": target})
        step_with = make_step(
            make_loss(NETWORK, recipe, lambda keys, x, coins: x, jax.random.key(1)), OPTIMIZER, ema.constant(0.9)
        )
        layout = "data_parallel" if shares == 1 else "fsdp"
        seen[shares] = train(4, steps=3, step_with=step_with, layout=layout)[0].params
    for a, b in zip(*map(jax.tree.leaves, seen.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.thorough
def test_each_device_holds_its_part_and_gathers_a_layer_at_a_time():
    """The memory of a step, by the compiler's own account, of a DiT whose parameters are most of it."""
    network = as_network(lambda rngs: DiT((4, 4, 1), FIELDS, patch=2, width=64, depth=16, heads=4, rngs=rngs))
    loss = make_loss(network, RECIPE, lambda keys, x, coins: x, jax.random.key(1))
    like = jax.eval_shape(lambda: init_state(network, OPTIMIZER, jax.random.key(0)))
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(like))
    images = Batch(np.zeros((8, 4, 4, 1), np.float32), batch(0).value, np.arange(8, dtype=np.int32))
    images = images._replace(value={name: a[:8] for name, a in images.value.items()})
    arguments, temporary = [], []
    for shards in (1, 2, 8):
        layout = fsdp(jax.devices(), shards, min_size=1024)
        program = layout.program(make_step(loss, OPTIMIZER, ema.constant(0.9)), True)
        compiled = program.lower(abstract(like, layout), layout.batch(images), None).compile()
        memory = compiled.memory_analysis()
        arguments.append(memory.argument_size_in_bytes / size)
        temporary.append(memory.temp_size_in_bytes)
        gathers = [line for line in compiled.as_text().splitlines() if " all-gather(" in line]
        assert bool(gathers) == (shards > 1)
        assert not any("[16," in line.split(" all-gather(")[0] for line in gathers)  # never the stack of layers
    np.testing.assert_allclose(arguments, [1, 1 / 2, 1 / 8], rtol=0.02)
    # Gradients are split as well; what stays is one whole layer, of sixteen, and the activations.
    assert temporary[2] < 0.5 * temporary[0]


RULES = {
    "the largest axis": ((3, 64, 128), 4, 1, (), 2),
    "of equal ones the last": ((64, 64), 4, 1, (), 1),
    "that the shards divide": ((30, 27), 10, 1, (), 0),
    "if there is one": ((7, 9), 4, 1, (), None),
    "small leaves stay whole": ((64, 64), 4, 4097, (), None),
    "as does all on one device": ((64, 64), 1, 1, (), None),
    "a scalar": ((), 4, 1, (), None),
    "an override": ((64, 128), 4, 1, (("kernel$", 0),), 0),
    "the first that fits": ((64, 128), 4, 1, (("bias", 1), ("film", None), ("kernel", 0)), None),
    "of a small leaf too": ((4, 4), 4, 1000, (("kernel", 1),), 1),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_of_the_axis_that_is_split(name):
    shape, shards, min_size, overrides, axis = RULES[name]
    assert split_axis(".params/film/kernel", shape, shards, min_size, overrides) == axis


def test_shards_and_overrides_that_cannot_be_are_refused():
    for axis in (1, 2, -1):
        with pytest.raises(ValueError, match=rf"axis {axis} of a/kernel \(8, 3\) cannot be split into 4"):
            split_axis("a/kernel", (8, 3), 4, 1, (("kernel", axis),))
    with pytest.raises(ValueError, match="shards must divide the number of devices, 8; got 3"):
        fsdp(jax.devices(), 3)
    config = default()
    config.layout = {"name": "fsdp", "shards": 5}
    with pytest.raises(UserError, match="shards must divide the number of devices, 8; got 5"):
        build.layout(config, jax.devices())
    config.layout = {"name": "zero"}
    with pytest.raises(UserError, match="unknown layout 'zero': there are data_parallel, fsdp"):
        build.layout(config, jax.devices())
    config.layout = {"name": "fsdp", "devices": 3}
    with pytest.raises(UserError, match="no setting 'devices': it takes shards, min_size, overrides"):
        build.layout(config, jax.devices())


def test_devices_that_jax_makes_no_mesh_of_are_taken_in_their_order(monkeypatch):
    """As nodes of GPUs and several TPU slices are, and shapes that the torus of a slice has not."""
    expected = parallel.fsdp(jax.devices(), 4).mesh
    for error in (ValueError, NotImplementedError):

        def refuse(*args, error=error, **options):
            raise error("multi-slice topologies")

        monkeypatch.setattr(jax, "make_mesh", refuse)
        mesh = parallel.fsdp(jax.devices(), 4).mesh
        assert mesh == expected
        assert mesh.devices.tolist() == np.reshape(jax.devices(), (2, 4)).tolist()


@pytest.mark.thorough
def test_step_compiles_once():
    traces = []
    step_with = make_step(LOSS, OPTIMIZER, ema.constant(0.9))

    def counting(mean):
        step = step_with(mean)
        return lambda *given: traces.append(0) or step(*given)

    train(2, steps=3, step_with=counting)
    assert len(traces) == 1


def mirroring(examples):
    """What the network sees is what is stored, mirrored by the coins."""
    return lambda keys, x, coins: mirrored_where(coins, jnp.asarray(x), examples.mirrored)


def test_flip_mirrors_half_of_the_images():
    """Images that are 1 on the left; a prediction of 1 on the right errs by 1 on them and by 0 on mirrored ones."""
    images = np.zeros((256, 2, 2, 1), np.float32)
    images[:, :, 0] = 1.0
    right = jnp.asarray(images[:1, :, ::-1])
    network = Network(lambda key: {}, lambda params, t, x, c: jnp.broadcast_to(right, x.shape))
    recipe = losses.Recipe(paths.path(lambda t: t, lambda t: 0 * t), times.uniform())  # the target is x1 itself
    b = Batch(images, {"a": np.zeros(256, np.int32)}, np.arange(256, dtype=np.int32))
    flipping = make_loss(network, recipe, mirroring(Images((2, 2, 1))), jax.random.key(2), flip=True)
    share = 1 - float(flipping({}, 0, b))
    assert abs(share - 0.5) < 4.5 * 0.5 / 256**0.5
    assert float(make_loss(network, recipe, lambda keys, x, coins: x, jax.random.key(2))({}, 0, b)) == 1.0


@pytest.mark.thorough
def test_what_lies_beside_an_example_is_mirrored_with_it_and_its_known_part_is_its_own():
    """The network predicts its condition, which is the mirrored example itself: no error remains."""
    x = np.random.default_rng(0).normal(size=(64, 3, 4, 1)).astype(np.float32)
    fields = {"beside": Aligned(Vectors((3, 4, 1))), "known": Known(Vectors((3, 4, 1))), "kind": Label(("a", "b"))}
    parts = []

    def velocity(params, t, x, c):
        parts.append(c.value["known"])
        return jnp.where(jnp.isnan(c.value["known"]), c.value["beside"], c.value["known"])

    recipe = losses.Recipe(paths.path(lambda t: t, lambda t: 0 * t), times.uniform())  # the target is x1 itself
    b = Batch(x, {"beside": x, "kind": np.zeros(64, np.int32)}, np.arange(64, dtype=np.int32))
    network = Network(lambda key: {}, velocity)
    loss = make_loss(network, recipe, mirroring(Images((3, 4, 1))), jax.random.key(2), flip=True, fields=fields)
    assert float(loss({}, 0, b)) == 0.0
    known = ~np.isnan(parts[0])
    assert 0.2 < known.mean() < 0.8
    assert not np.array_equal(parts[0][known], x[known])  # half of them are mirrored


@pytest.mark.thorough
def test_the_moving_average_teaches_unless_another_does():
    recipe = RECIPE._replace(target=targets.model_guidance(3.0))
    loss = make_loss(NETWORK, recipe, lambda keys, x, coins: x, jax.random.key(1))
    state = init_state(NETWORK, OPTIMIZER, jax.random.key(0))
    flat, unravel = ravel_pytree(state.params)
    noisy = unravel(flat + 0.3 * jax.random.normal(jax.random.key(4), flat.shape))
    state, other = state._replace(ema=noisy), jax.tree.map(lambda a: 2 * a, noisy)
    step, error = jax.jit(make_step(loss, OPTIMIZER, ema.constant(0.9))(lambda tree: tree)), jax.jit(loss)
    b = batch(0)
    b = b._replace(x=jnp.asarray(b.x, jnp.float32))
    for given, teacher in ((None, noisy), (other, other)):
        _, metrics = step(state, b, ReadOnly(given))
        assert float(metrics["loss"]) == pytest.approx(float(error(state.params, 0, b, teacher)))
    assert abs(error(state.params, 0, b, noisy) - error(state.params, 0, b)) > 1e-3
    # Nothing is learnt through the teacher.
    through = jax.jit(jax.grad(lambda teacher: loss(state.params, 0, b, teacher)))(noisy)
    assert not any(np.any(g) for g in jax.tree.leaves(through))
