# %% [markdown]
# # Inference with a simulator
#
# You can simulate data from parameters, and want the parameters of what you observed. Simulate many pairs, fit the
# parameters given the data, and condition on the observation. The simulator here is a throw whose posteriors are known
# exactly, so that every answer can be checked; then the checks that need no exact answer.
#
# The fit takes two minutes on one CPU core.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import flowguide as fg
from flowguide import metrics, pictures

MINUTES = float(os.environ.get("FLOWGUIDE_NOTEBOOK_MINUTES", 1))
os.chdir(tempfile.mkdtemp())  # the run of this notebook goes to a new folder
rng = np.random.default_rng(0)

# %% [markdown]
# ## A throw
#
# Somebody throws a ball with an unknown speed and angle. We see where it lands, to half a metre, and sometimes how long
# it flies, to a tenth of a second.


# %%
def prior(num):
    """Draws speeds in m/s and angles in degrees, (num, 2)."""
    return np.stack([rng.normal(10, 2, num), rng.normal(45, 15, num)], 1)


def throw(theta):
    """Returns the distance in m and the time in s without noise, for theta (..., 2)."""
    speed, angle = theta[..., 0], np.radians(theta[..., 1])
    return speed**2 * np.sin(2 * angle) / 9.81, 2 * speed * np.sin(angle) / 9.81


def simulate(theta):
    """Returns what is seen, (num, 1) each."""
    distance, time = throw(theta)
    noise = rng.normal(size=(2, len(theta)))
    return {"distance": (distance + 0.5 * noise[0])[:, None], "time": (time + 0.1 * noise[1])[:, None]}


theta = prior(10_000)
model = fg.fit(theta, simulate(theta), workdir="runs/throw", minutes=2 * MINUTES)

# %% [markdown]
# ## Posteriors
#
# The ball landed after 8 m: a fast throw that was flat or steep, or a slower one between. With the time, only one of
# these is left. What `given` does not name is not known, so one fit serves both questions.

# %%
by_distance = model.given(distance=8.0)
by_both = model.given(distance=8.0, time=1.8)
samples = {"distance = 8 m": by_distance.sample(2000), "distance = 8 m, time = 1.8 s": by_both.sample(2000)}

# %% [markdown]
# The exact posterior, on a grid, is the prior times the likelihood. Its level lines hold 50, 80 and 95 % of the mass.

# %%
speeds, angles = np.linspace(2, 20, 361), np.linspace(-15, 105, 361)
grid = np.stack(np.meshgrid(speeds, angles), -1)  # (361, 361, 2)
cell = (speeds[1] - speeds[0]) * (angles[1] - angles[0])


def exact(distances=(), times=()):
    """Returns the exact posterior density on the grid, of one throw or several equal ones."""
    log_p = -0.5 * ((grid[..., 0] - 10) / 2) ** 2 - 0.5 * ((grid[..., 1] - 45) / 15) ** 2
    distance, time = throw(grid)
    log_p -= sum(0.5 * ((distance - x) / 0.5) ** 2 for x in distances)
    log_p -= sum(0.5 * ((time - x) / 0.1) ** 2 for x in times)
    p = np.exp(log_p - log_p.max())
    return p / p.sum() / cell


def draw(ax, x, p, title):
    ax.scatter(*x.T, s=2, alpha=0.4)
    from_top = np.sort(p.ravel())[::-1]
    ax.contour(speeds, angles, p, from_top[np.searchsorted(np.cumsum(from_top) * cell, [0.95, 0.8, 0.5])], colors="k")
    ax.set(xlim=(5, 16), ylim=(0, 90), xlabel="speed, m/s", title=title)


exactly = dict(zip(samples, [exact([8.0]), exact([8.0], [1.8])], strict=True))
_, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
draw(axes[0], theta[:2000], exact(), "prior")
for ax, (title, x) in zip(axes[1:], samples.items(), strict=True):
    draw(ax, x, exactly[title], title)
axes[0].set_ylabel("angle, °")
plt.show()

# %% [markdown]
# Two numbers say how good they are. C2ST is the accuracy of a classifier that tells samples from exact draws: ½ is
# perfect. And `log_prob` is exact for the model, so the mean of log q − log p over its samples is the divergence
# KL(q‖p) in nats: 0 is perfect.


# %%
def exact_draws(p, num):
    """Returns draws of a density on the grid, spread over their cells."""
    chosen = grid.reshape(-1, 2)[rng.choice(p.size, num, p=p.ravel() * cell)]
    return chosen + rng.uniform(-0.5, 0.5, (num, 2)) * [speeds[1] - speeds[0], angles[1] - angles[0]]


for title, posterior in zip(samples, (by_distance, by_both), strict=True):
    x, p = samples[title], exactly[title]
    row, column = np.searchsorted(angles, x[:, 1]).clip(0, 360), np.searchsorted(speeds, x[:, 0]).clip(0, 360)
    log_p = np.log(p[row, column].clip(1e-12))
    c2st = metrics.c2st(exact_draws(p, 1000), x[:1000])
    print(f"{title:30} C2ST {c2st:.3f}, KL {np.mean(posterior.log_prob(x) - log_p):.3f} nats")

# %% [markdown]
# ## Calibration, without exact answers
#
# Usually there is no exact posterior. But pairs of parameters and data are there as many as you simulate. If posteriors
# are right, the rank of the true parameter among posterior samples is uniform (simulation-based calibration), and
# regions hold the truth as often as they claim (TARP). 300 new throws, 100 samples of each posterior:

# %%
truth, L = prior(300), 100
seen = simulate(truth)
posteriors = [model.given(distance=x, time=t) for x, t in zip(seen["distance"], seen["time"], strict=True)]
drawn = np.stack([posterior.sample(L) for posterior in posteriors])  # (300, 100, 2)

ranks = metrics.sbc_ranks(truth, drawn)
pictures.save_ranks(Path("ranks.png"), ranks, L, ["speed", "angle"])
Image.open("ranks.png")

# %% [markdown]
# How would posteriors look that are too narrow? We pull the samples a third of the way to their mean. Their TARP curve
# leaves the band.

# %%
narrow = drawn.mean(1, keepdims=True) + 2 / 3 * (drawn - drawn.mean(1, keepdims=True))
curves = {
    "as fitted": metrics.coverage(metrics.tarp_ranks(truth, drawn), L),
    "too narrow": metrics.coverage(metrics.tarp_ranks(truth, narrow), L),
}
pictures.save_coverage(Path("coverage.png"), curves)
Image.open("coverage.png")

# %%
for name, x in {"as fitted": drawn, "too narrow": narrow}.items():
    found = metrics.uniformity(metrics.sbc_ranks(truth, x), L)
    print(f"{name:10} uniform: {found.uniform}, distance {found.distance.max():.3f} (band {found.band:.3f}),", end=" ")
    print("spread", *(f"{each:+.1f}" for each in found.spread), "standard errors")

# %% [markdown]
# If `uniform` is False for the fit itself, as after a short fit on a busy machine, its posteriors are a little too
# narrow: train longer.
#
# Calibration is not all: the prior itself is calibrated. It says that a posterior is not overconfident, not that it is
# as narrow as the data allow.
#
# ## Several observations
#
# Four throws of the same speed and angle, of which we only know where they landed. Their posterior is
# p(θ)^(1−4)·Π p(θ|x_i). `given_all` combines the same model for each of them by weighted particles. Nothing is trained
# again.

# %%
true = np.array([[11.0, 60.0]])
landed = simulate(np.repeat(true, 4, 0))["distance"]  # (4, 1)
one, four = model.given(distance=landed[0]).sample(2000), model.given_all(distance=landed).sample(2000)

_, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
draw(axes[0], one, exact(landed[:1, 0]), f"one throw: {landed[0, 0]:.1f} m")
draw(axes[1], four, exact(landed[:, 0]), "four: " + ", ".join(f"{x:.1f}" for x in landed[:, 0]) + " m")
for ax in axes:
    ax.plot(*true.T, "C3*", ms=12)
axes[0].set_ylabel("angle, °")
plt.show()

# %%
distance = [throw(x)[0].std() for x in (one, four, exact_draws(exact(landed[:, 0]), 2000))]
print("standard deviation of the distance that the parameters give, m:")
print("one throw {:.3f}, four throws {:.3f}, exactly {:.3f}".format(*distance))
print(f"C2ST of four throws: {metrics.c2st(exact_draws(exact(landed[:, 0]), 1000), four[:1000]):.3f}")

# %% [markdown]
# The red star is the truth. More throws make the band narrower but cannot tell a flat throw from a steep one.
# [Inference with simulators](../inference.md) has the whole story, with limits.
