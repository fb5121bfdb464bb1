# %% [markdown]
# # The story of guidance
#
# Guidance mixes two velocities, (1 − γ)·u(x, ∅) + γ·u(x, c). What does it sample? This notebook takes a law in the
# plane that is known exactly, so that no network error is in the way, and looks: at the two fields, at what guidance
# samples, at negative conditions, and at samplers of the law that guidance is often said to sample.
#
# It trains nothing and runs in about a minute on one CPU core.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from flowguide import analytic, condition, guidance, paths, solvers, tilted, times
from flowguide.condition import given

# %% [markdown]
# ## A law that is known exactly
#
# A mixture of five Gaussians with three labels. We will ask for c, which has two modes, and sometimes avoid d, which
# overlaps one of them. ∅, no label at all, stands for everything: p(x) = Σ p(label)·p(x|label).

# %%
means = jnp.array([[-1.4, 0.6], [0.9, 0.5], [1.7, 1.0], [0.6, -1.3], [-1.1, -1.2]])
variances = jnp.array([0.15, 0.15, 0.3, 0.3, 0.4])
weights = jnp.array([0.2, 0.2, 0.2, 0.2, 0.2])
C, D = 0, 1  # the label to ask for, and the one to avoid
law = analytic.mixture(weights, means, variances, labels=jnp.array([C, C, D, 2, 2]))
path = paths.linear()  # x_t = t·x1 + (1 − t)·x0: noise at t = 0, data at t = 1
u = analytic.velocity(law, path)  # u(t, x, c), exact


def asked(label, num):
    """Returns a condition for num examples; label None is ∅."""
    return condition.null(given(jnp.zeros(num, int))) if label is None else given(jnp.full(num, label))


side = jnp.linspace(-6, 4, 251)
grid = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
null, of_c, of_d = (analytic.log_density(law, path, 1.0, grid, asked(k, len(grid))) for k in (None, C, D))


def draw_law(ax, log_p, left=-3.2, **style):
    """Draws level lines around 50, 80 and 95 % of the mass."""
    p = jnp.exp(log_p - log_p.max())
    p = np.asarray(p / p.sum())
    from_top = np.sort(p)[::-1]
    levels = from_top[np.searchsorted(np.cumsum(from_top), [0.95, 0.8, 0.5])]
    ax.contour(side, side, p.reshape(len(side), -1), levels, linewidths=1, **style)
    ax.set(xlim=(left, left + 6.4), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")


_, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, log_p, title in zip(axes, (null, of_c, of_d), ("p(x)", "p(x|c)", "p(x|d)"), strict=True):
    draw_law(ax, log_p, colors="k")
    ax.set_title(title)
plt.show()

# %% [markdown]
# ## Two fields
#
# Halfway from noise to data, the conditional velocity u(x, c) leads to the modes of c, and the unconditional one
# u(x, ∅) to all modes. Their difference is the gradient of log p_t(c|x), times a number that depends on t alone: it
# points to where noisy points are more certainly of class c.

# %%
t = 0.5
arrows = jnp.stack(jnp.meshgrid(jnp.linspace(-2.4, 2.4, 13), jnp.linspace(-2.4, 2.4, 13)), -1).reshape(-1, 2)
u_null, u_c, u_d = (u(jnp.full(len(arrows), t), arrows, asked(k, len(arrows))) for k in (None, C, D))


def draw_field(ax, field, title, color="k"):
    ax.quiver(*arrows.T, *field.T, color=color, angles="xy", scale_units="xy", scale=6, width=0.006)
    ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal", title=title)


_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
gamma = 3.0
draw_field(axes[0], u_null, "u(x, ∅)")
draw_field(axes[1], u_c, "u(x, c)")
draw_field(axes[2], u_c - u_null, "u(x, c) − u(x, ∅)", "C3")
draw_field(axes[3], (1 - gamma) * u_null + gamma * u_c, f"guided, γ = {gamma:g}", "C0")
plt.show()

# %% [markdown]
# ## What guidance samples
#
# We integrate the guided field from noise to data. γ = 0 gives p(x) and γ = 1 gives p(x|c), as they should: these two
# are exact. With more, points leave the places that c shares with other labels.
#
# The lines are the *γ-powered law* p(x)^(1−γ)·p(x|c)^γ, which guidance is often said to sample. It does not: the points
# crowd at the edge that is furthest from the other labels.


# %%
def flow(gamma, num=4000, solver=None, **negative):
    """Returns num samples of the guided flow towards c."""
    guided = guidance.guide(u, asked(C, num), guidance.classifier_free(u, asked(C, num), gamma, **negative))
    x0 = jax.random.normal(jax.random.key(0), (num, 2))
    return jax.jit(lambda x: solvers.solve(solver or solvers.heun(), guided, x, times.grid(100)))(x0)


def powered(gamma):
    """Returns the log-density of the γ-powered law on the grid, up to a constant."""
    return (1 - gamma) * null + gamma * of_c


gammas = (0.0, 1.0, 2.0, 4.0)
samples = {gamma: flow(gamma) for gamma in gammas}
_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for ax, gamma in zip(axes, gammas, strict=True):
    ax.scatter(*samples[gamma].T, s=1, alpha=0.4)
    draw_law(ax, powered(gamma), colors="k")
    ax.set_title(f"γ = {gamma:g}")
plt.show()

# %% [markdown]
# How far off? The sliced Wasserstein-1 distance compares samples with exact draws of a law: the mean distance of their
# projections on many lines. Exact draws are not at distance 0 of each other, because there are 4,000 of them.


# %%
def exact_draws(log_p, num=4000, seed=0):
    """Returns draws of a law on the grid, spread over their cells."""
    rng = np.random.default_rng(seed)
    p = np.asarray(jnp.exp(log_p - log_p.max()), float)
    cells = np.asarray(grid)[rng.choice(len(p), num, p=p / p.sum())]
    return cells + rng.uniform(-0.5, 0.5, (num, 2)) * float(side[1] - side[0])


def distance(x, y):
    """Returns the sliced Wasserstein-1 distance of two sets of equal size."""
    angles = np.arange(32) * np.pi / 32
    lines = np.stack([np.cos(angles), np.sin(angles)])
    return np.mean(np.abs(np.sort(np.asarray(x) @ lines, axis=0) - np.sort(np.asarray(y) @ lines, axis=0)))


print("  γ   guided flow   exact draws")
for gamma in gammas:
    target = exact_draws(powered(gamma))
    found, noise = distance(samples[gamma], target), distance(exact_draws(powered(gamma), seed=1), target)
    print(f"{gamma:3g}   {found:11.3f}   {noise:11.3f}")

# %% [markdown]
# ## Why it is another law
#
# At each time t, the guided score (1 − γ)·∇log p_t(x) + γ·∇log p_t(x|c) is that of the powered *noisy* laws,
# p_t(x)^(1−γ)·p_t(x|c)^γ. A flow that samples the powered law would need the score of the *noised powered* law.
# Raising to powers and adding noise do not commute.
#
# One dimension and Gaussians show it in closed form. Take c ~ N(0, 1) and x|c ~ N(c, 1), and ask for c = 0. The guided
# flow ends with variance 2^(1−γ), the γ-powered law has 2/(1 + γ). (Bradley & Nakkiran 2024)

# %%
line = analytic.observation([[1.0]], 1.0)  # x|c ~ N(c, 1), c ~ N(0, 1)
u_line = analytic.velocity(line, path)
at_zero = given(jnp.zeros((20_000, 1)))


@jax.jit
def variances_along(gamma):
    """Returns the variance of the guided flow at 101 times."""
    guided = guidance.guide(u_line, at_zero, guidance.classifier_free(u_line, at_zero, gamma))
    x0 = jax.random.normal(jax.random.key(0), (20_000, 1))

    def step(x, ends):
        x = solvers.solve(solvers.heun(), guided, x, ends)
        return x, x.var()

    ts = times.grid(100)
    return jnp.concatenate([jnp.ones(1), jax.lax.scan(step, x0, jnp.stack([ts[:-1], ts[1:]], 1))[1]])


print("  γ   sampled   2^(1−γ)   powered law 2/(1 + γ)")
for gamma in (1.0, 2.0, 3.0, 5.0):
    print(f"{gamma:3g}   {variances_along(gamma)[-1]:7.3f}   {2 ** (1 - gamma):7.3f}   {2 / (1 + gamma):7.3f}")

# %%
gamma, ts = 3.0, np.linspace(0, 1, 101)
noised = ts**2 * 2 / (1 + gamma) + (1 - ts) ** 2  # the powered law at t = 1, with noise added
own, every = ts**2 * 1 + (1 - ts) ** 2, ts**2 * 2 + (1 - ts) ** 2  # variances of p_t(x|c) and p_t(x)
_, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.plot(ts, variances_along(gamma), "C0", lw=2, label="guided flow")
ax.plot(ts, noised, "k", label="powered law, noised")
ax.plot(ts, 1 / ((1 - gamma) / every + gamma / own), "k:", label="noisy laws, powered")
ax.set(xlabel="t, from noise to data", ylabel="variance", title=f"γ = {gamma:g}", ylim=(0, 1.05), xlim=(0, 1))
ax.legend()
plt.show()

# %% [markdown]
# The guided score is that of the dotted laws. A flow stays on a family of laws only if it moves along with them; the
# guided velocity does not move with the dotted ones, and ends with half the variance of the powered law.
#
# ## Negative conditions
#
# A negative condition d can take the place of ∅: (1 − γ)·u(x, d) + γ·u(x, c). Or it has a weight of its own:
# u(x, ∅) + γ·(u(x, c) − u(x, ∅)) − γₙ·(u(x, d) − u(x, ∅)). The first is the second with γₙ = γ − 1.

# %%
gamma = 2.0
_, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
draw_field(axes[0], (1 - gamma) * u_null + gamma * u_c, "guided to c, γ = 2", "C0")
draw_field(axes[1], u_d - u_null, "u(x, d) − u(x, ∅)", "C3")
draw_field(axes[2], (1 - gamma) * u_d + gamma * u_c, "d in the place of ∅, γ = 2", "C0")
plt.show()

# %%
away = {0.0: flow(2.0), **{n: flow(2.0, negative=[asked(D, 4000)], gamma_negative=n) for n in (0.25, 0.5, 1.0)}}
_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for ax, (n, x) in zip(axes, away.items(), strict=True):
    ax.scatter(*x.T, s=1, alpha=0.4)
    draw_law(ax, of_d, left=-4, colors="C3", linestyles="dotted")
    draw_law(ax, (n - 1) * null + 2 * of_c - n * of_d, left=-4, colors="k")
    ax.set_title(f"γ = 2, γₙ = {n:g}")
plt.show()

# %% [markdown]
# Red is p(x|d). Black is again the law that the weights name, p(x)^(1−γ+γₙ)·p(x|c)^γ·p(x|d)^(−γₙ), and again the flow
# samples another one. As everything is known here, we can say how probable it is that a sample is a d, how many samples
# are left at the right mode, which d overlaps, and where the left mode has gone.

# %%
print("γₙ     mean p(d|x)   right mode   centre of the left mode (γ = 1: −1.40)")
for n, x in away.items():
    log_d, log_all = (analytic.log_density(law, path, 1.0, x, asked(k, len(x))) for k in (D, None))
    p_d, left = weights[2] * jnp.exp(log_d - log_all), x[:, 0] < -0.2
    print(f"{n:4g}   {p_d.mean():11.3f}   {1 - left.mean():10.1%}   {x[left, 0].mean():.2f}")

# %% [markdown]
# A small weight removes most of d. A larger one costs the whole mode beside d, and moves the other one, which never was
# near d, to where there are no data. The black lines move too: such weights name a law far out. The flow goes further.
#
# ## Samplers of the γ-powered law
#
# If you want the γ-powered law itself, the same velocities give it. Particles follow the guided flow with noise, the
# SDE; each collects a weight on the way, which measures how wrong the flow is there; when the weights become uneven,
# good particles are copied and bad ones dropped. This is `tilted.feynman_kac`. Noise alone helps, but not enough.

# %%
gamma, num = 4.0, 4000
key = jax.random.key(1)
particles = jax.jit(
    lambda key: tilted.feynman_kac(
        tilted.powered(u, asked(C, 1), gamma), path, key[None], times.grid(200), (2,), particles=num, eta=4.0
    )
)(key)
drawn = {
    "guided flow": samples[gamma],
    "SDE, η = 1": flow(gamma, solver=solvers.renoise_2m(path, jax.random.split(key, num))),
    "particles, η = 4": tilted.resample(key[None], particles.log_weights, particles.x)[0],
}
target = exact_draws(powered(gamma))
_, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for ax, (title, x) in zip(axes, drawn.items(), strict=True):
    ax.scatter(*x.T, s=1, alpha=0.4)
    draw_law(ax, powered(gamma), colors="k")
    ax.set_title(f"{title}: distance {distance(x, target):.3f}", fontsize=10)
plt.show()

# %% [markdown]
# The particles also estimate Z = ∫ p(x)^(1−γ)·p(x|c)^γ dx. The effective sample size says how many of them still
# count; it jumps where they were resampled.

# %%
cell = (side[1] - side[0]) ** 2
print(f"log Z: particles {particles.log_z[0]:.3f}, exactly {jax.nn.logsumexp(powered(gamma)) + jnp.log(cell):.3f}")
_, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(times.grid(200)[1:], particles.ess[0])
ax.set(xlabel="t, from noise to data", ylabel="effective sample size", ylim=(0, 1.02 * num), xlim=(0, 1))
plt.show()

# %% [markdown]
# With a trained network, `sampling.sample_particles(model, "c", gamma=4.0)` does the same.
# [Theory](../theory.md) has the closed forms and measurements, and [Sampling](../sampling.md) says what to
# use when.
