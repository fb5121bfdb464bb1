"""The FID network against one written in NumPy from its description, on random weights."""

import json

import numpy as np
import pytest

from flowguide.errors import UserError
from flowguide.metrics import inception_score
from flowguide.metrics.inception import InceptionV3, activations, load_inception, shapes


@pytest.fixture(scope="module")
def arrays():
    """A state dict under which activations keep their size."""
    rng = np.random.default_rng(0)

    def draw(key, shape):
        if key.endswith((".running_var", ".bn.weight")):
            return rng.uniform(0.5, 1.5, shape)
        scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
        return scale * rng.standard_normal(shape)

    return {key: draw(key, shape).astype(np.float32) for key, shape in shapes().items()}


@pytest.fixture(scope="module")
def network(arrays):
    return InceptionV3(arrays)


class Reference:
    """Inception of 2015-12-05 in NumPy, channels last; blocks by the letters of the paper's implementation."""

    def __init__(self, arrays):
        self.w = {k: a.astype(np.float64) for k, a in arrays.items()}

    def conv(self, name, x, stride=1, pad=(0, 0)):
        w = self.w
        x = np.pad(x, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)))
        kernel = w[f"{name}.conv.weight"]
        x = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
        x = np.tensordot(x, kernel, ([3, 4, 5], [1, 2, 3]))
        x = (x - w[f"{name}.bn.running_mean"]) / np.sqrt(w[f"{name}.bn.running_var"] + 0.001)
        return np.maximum(x * w[f"{name}.bn.weight"] + w[f"{name}.bn.bias"], 0)

    def pool(self, x, stride, pad, how, outside):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=outside)
        return how(np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::stride, ::stride], (-2, -1))

    def shrink(self, x):
        return self.pool(x, 2, 0, np.max, 0)

    def average(self, x):
        return self.pool(x, 1, 1, np.nanmean, np.nan)

    def maximum(self, x):
        return self.pool(x, 1, 1, np.max, -np.inf)

    def chain(self, block, x, *steps):
        for name, *options in steps:
            x = self.conv(f"{block}.{name}", x, *options)
        return x

    def a(self, m, x):
        return np.concatenate(
            [
                self.chain(m, x, ("branch1x1",)),
                self.chain(m, x, ("branch5x5_1",), ("branch5x5_2", 1, (2, 2))),
                self.chain(m, x, ("branch3x3dbl_1",), *((f"branch3x3dbl_{i}", 1, (1, 1)) for i in (2, 3))),
                self.chain(m, self.average(x), ("branch_pool",)),
            ],
            -1,
        )

    def b(self, m, x):
        double = self.chain(m, x, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, (1, 1)), ("branch3x3dbl_3", 2))
        return np.concatenate([self.chain(m, x, ("branch3x3", 2)), double, self.shrink(x)], -1)

    def c(self, m, x):
        across, down = (0, 3), (3, 0)
        single = ("branch7x7_1",), ("branch7x7_2", 1, across), ("branch7x7_3", 1, down)
        pads = enumerate((down, across, down, across), 2)
        double = ("branch7x7dbl_1",), *((f"branch7x7dbl_{i}", 1, pad) for i, pad in pads)
        pooled = self.chain(m, self.average(x), ("branch_pool",))
        return np.concatenate(
            [self.chain(m, x, ("branch1x1",)), self.chain(m, x, *single), self.chain(m, x, *double), pooled], -1
        )

    def d(self, m, x):
        n = "branch7x7x3"
        long = self.chain(m, x, (f"{n}_1",), (f"{n}_2", 1, (0, 3)), (f"{n}_3", 1, (3, 0)), (f"{n}_4", 2))
        return np.concatenate([self.chain(m, x, ("branch3x3_1",), ("branch3x3_2", 2)), long, self.shrink(x)], -1)

    def e(self, m, x, pool):
        def cross(y, name):
            return [self.conv(f"{m}.{name}{s}", y, 1, pad) for s, pad in (("a", (0, 1)), ("b", (1, 0)))]

        double = self.chain(m, x, ("branch3x3dbl_1",), ("branch3x3dbl_2", 1, (1, 1)))
        parts = [*cross(self.chain(m, x, ("branch3x3_1",)), "branch3x3_2"), *cross(double, "branch3x3dbl_3")]
        ends = self.chain(m, x, ("branch1x1",)), self.chain(m, pool(x), ("branch_pool",))
        return np.concatenate([ends[0], *parts, ends[1]], -1)

    def __call__(self, x):
        x = self.conv("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, 2))
        x = self.shrink(self.conv("Conv2d_2b_3x3", x, 1, (1, 1)))
        x = self.shrink(self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x)))
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(name, x)
        x = self.c("Mixed_6c", self.c("Mixed_6b", self.b("Mixed_6a", x)))
        spatial = self.conv("Mixed_6d.branch1x1", x)[..., :7].reshape(len(x), -1)
        x = self.d("Mixed_7a", self.c("Mixed_6e", self.c("Mixed_6d", x)))
        x = self.e("Mixed_7c", self.e("Mixed_7b", x, self.average), self.maximum)
        pool = x.mean((1, 2))
        unbiased = pool @ self.w["fc.weight"].T
        return pool, spatial, unbiased + self.w["fc.bias"], unbiased


@pytest.mark.thorough
def test_activations_are_those_of_the_network(arrays, network):
    """At 299 pixels, where no convention resizes; three images in batches of two."""
    images = np.random.default_rng(1).integers(0, 256, (3, 299, 299, 3), np.uint8)
    images[0] = images[0] // 8 + np.linspace(0, 200, 299, dtype=np.uint8)[:, None]  # smooth
    found = activations(network, images, batch=2)
    assert [a.shape for a in found] == [(3, 2048), (3, 2023), (3, 1008), (3, 1008)]
    for ours, expected in zip(found, Reference(arrays)((images - 128.0) / 128), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert inception_score(found.probabilities, splits=1).mean > 1


def test_the_names_and_sizes_are_those_of_the_published_file(arrays):
    """94 convolutions of 5 arrays and the last layer: 23,885,392 numbers without the counters of batches."""
    assert len(shapes()) == 94 * 5 + 2
    assert sum(a.size for a in arrays.values()) == 23_885_486 - 94
    assert shapes()["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes()["Mixed_7c.branch3x3dbl_1.conv.weight"] == (448, 2048, 1, 1)


def test_what_does_not_fit_is_named(arrays, network, tmp_path):
    wrong = {k: a for k, a in arrays.items() if k != "fc.bias"}
    wrong |= {
        "AuxLogits.fc.bias": np.zeros(3),
        "fc.weight": np.zeros((1000, 2048)),
        "a.num_batches_tracked": np.ones(1),
    }
    message = (
        r"1 missing: fc.bias; 1 surplus: AuxLogits.fc.bias; 1 misshapen: fc.weight \(1000, 2048\), not \(1008, 2048\)"
    )
    with pytest.raises(UserError, match=message):
        InceptionV3(wrong)
    header = json.dumps({"fc.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"471 missing: .*fc.bias .2,., not .1008,."):
        load_inception(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="H, W ≥ 75"):
        network(np.zeros((1, 74, 80, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        activations(network, np.zeros((1, 299, 299, 3)))
