"""Whether what is asked for can be had: by itself, together, and of a run. All before anything is computed."""

from __future__ import annotations

import jax
import numpy as np

from flowguide import guidance, paths, solvers, times
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.networks.perturbation import Perturbation
from flowguide.prompts import hint, listed
from flowguide.sampling.config import ADAPTIVE, SAMPLERS, SamplerConfig, SampleRequest, guided, nodes
from flowguide.sampling.run import Run
from flowguide.typing import Array


def resolve_defaults(method: SamplerConfig) -> SamplerConfig:
    """The method with its solver and η said.

    Raises:
      UserError: for settings that no run can have.
    """
    if method.sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {method.sampler!r}: there are {', '.join(SAMPLERS)}")
    own = SAMPLERS[method.sampler]
    eta = own.eta if method.proposal is None else 1.0  # another proposal is weighed by its own, memoryless noise
    method = method._replace(
        solver=own.solver if method.solver is None else method.solver, eta=eta if method.eta is None else method.eta
    )
    _check_integration(method)
    _check_guidance(method)
    if method.sampler == "fkc":
        _check_law(method)
    return method


def _check_integration(method: SamplerConfig) -> None:
    known = SAMPLERS[method.sampler].solvers
    if method.solver not in known:
        raise UserError(
            f"sampler {method.sampler!r} has no solver {method.solver!r}{hint(str(method.solver), known)}: there are "
            f"{', '.join(known)}"
        )
    if isinstance(method.grid, str) and method.grid not in times.WARPS:
        near = hint(method.grid, times.WARPS)
        raise UserError(
            f"unknown grid {method.grid!r}{near}: there are {', '.join(sorted(times.WARPS))}, or give its nodes"
        )
    if not isinstance(method.grid, str):
        ts = np.asarray(method.grid, np.float32)
        if len(ts) < 2 or ts[0] != 0 or ts[-1] != 1 or not (np.diff(ts) > 0).all():
            raise UserError(f"the nodes of a grid increase from 0 to 1; got {', '.join(f'{t:g}' for t in ts)}")
    if method.steps < 1 or method.reuse < 1 or method.corrections < 1:
        raise UserError(
            "steps, reuse and corrections must be at least 1; got "
            f"{method.steps}, {method.reuse} and {method.corrections}"
        )
    if method.eta is None or not 0 <= method.eta < np.inf:
        raise UserError(f"eta, the strength of the noise, must be 0 or more; got {method.eta}")
    if not 0 < method.tolerance < np.inf:
        raise UserError(f"the tolerance must be positive; got {method.tolerance}")


def _check_guidance(method: SamplerConfig) -> None:
    for what, name, known in (
        ("guidance", method.guidance, guidance.methods.METHODS),
        ("schedule", method.schedule, guidance.SCHEDULES),
    ):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{hint(str(name), known)}: there are {listed(sorted(known), 50)}")
    if bad := [name for name, value in method.settings if np.isnan(value)]:
        raise UserError(f"guidance {method.guidance!r} takes numbers; got {bad[0]} = nan")
    if not 0 <= method.rescale <= 1:
        raise UserError(f"rescale mixes between 0 and 1; got {method.rescale}")
    if method.interval is not None and not 0 <= method.interval[0] < method.interval[1] <= 1:
        raise UserError(f"interval needs 0 <= start < stop <= 1; got {method.interval}")
    if method.guidance == "cfg_pp" and method.schedule != "constant":
        raise UserError(
            f"guidance cfg_pp has no γ to schedule, gamma is its strength λ: use schedule 'constant', not "
            f"{method.schedule!r}"
        )
    if method.guidance == "perturbed" and method.perturbation == Perturbation():
        raise UserError(
            "guidance 'perturbed' needs to know what to take from the network: give --perturb=skip=1, say, or "
            "perturbation=Perturbation(skip=(1,)) in Python"
        )


def _check_law(method: SamplerConfig) -> None:
    plain = SamplerConfig()
    for name in ("guidance", "settings", "schedule", "interval", "rescale", "perturbation", "reuse"):
        if getattr(method, name) != getattr(plain, name):
            raise UserError(
                f"sampler 'fkc' draws from one law, a product of powers: {name} = {getattr(method, name)!r} is none; "
                "leave it out, or use the sampler 'flow'"
            )
    if method.proposal is not None and not np.isfinite(method.proposal):
        raise UserError(f"the proposal is a guidance scale, a finite number; got {method.proposal}")
    if method.proposal is not None and method.eta != 1:
        raise UserError(f"a proposal of its own needs memoryless noise, eta = 1; got {method.eta}")
    if not 0 <= method.threshold <= 1:
        raise UserError(f"the threshold is a share of the particles, 0 to 1; got {method.threshold}")
    if not 0 < method.until <= 1:
        raise UserError(f"until is the last time at which weights are gathered, 0 < until <= 1; got {method.until}")
    if method.clip is not None and not method.clip > 0:
        raise UserError(f"expected clip > 0; got {method.clip}")


def check_together(method: SamplerConfig, negatives: int = 0, composed: int = 0, weak: bool = False) -> None:
    """Raises ``UserError`` where a method cannot be had with so many negative and further conditions.

    Args:
      method: resolve_defaults.
      negatives: how many conditions are avoided.
      composed: how many are composed with the first.
      weak: whether there is a worse run.
    """
    if method.replace_null and negatives != 1:
        raise UserError(f"replace_null puts one negative condition in the place of ∅; got {negatives} of them")
    if method.guidance == "autoguidance" and not weak:
        raise UserError(
            "guidance 'autoguidance' needs a weaker network to move away from: give --weak=DIR or --weak_step=N, or "
            "weak=run in Python"
        )
    if weak and method.guidance != "autoguidance":
        raise UserError(f"a weak run is for guidance 'autoguidance'; got {method.guidance!r}: leave one of them out")
    if method.guidance == "cfg_pp" and method.solver not in ("ddim", "euler"):
        raise UserError(f"guidance cfg_pp is a first-order step with a noise of its own: use ddim, not {method.solver}")

    def velocity(t: Array, x: Array, c: Condition) -> Array:
        return x

    one, empty = guidance.constant(1.0), Condition({}, {})
    inputs = guidance.methods.GuidanceInputs(
        velocity,
        empty,
        one,
        paths.linear(),
        (empty,) * negatives,
        None if method.replace_null else one,
        ((empty, one),) * composed,
        None if method.solver in ADAPTIVE else nodes(method),
        velocity,
    )
    try:
        guiding = guidance.methods.build(method.guidance, inputs, method.rescale, **dict(method.settings))
        whole = guidance.guide(velocity, empty, guiding, method.passes, method.reuse)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if method.solver in ADAPTIVE and isinstance(whole, solvers.StatefulVelocity):
        raise UserError(
            f"{method.solver} chooses its steps, and guidance {method.guidance} remembers them or reuses references: "
            "use a solver that takes --steps"
        )


def check(
    run: Run, request: SampleRequest, weights: np.ndarray, method: SamplerConfig, weak: Run | None = None
) -> None:
    """Raises ``UserError`` for what a run cannot draw; ``method`` is resolve_defaults."""
    gamma, negatives = request.gamma, request.negatives
    for what, numbers in (("gamma", gamma), ("gamma_negative and other weights", weights)):
        if (bad := numbers[~np.isfinite(numbers)]).size:
            raise UserError(f"guidance scales must be finite; got {what} {bad[0]}")
    check_together(method, len(negatives), len(request.composed), weak is not None)
    if weak is not None and (weak.info.shape, weak.info.fields, weak.path) != (
        run.info.shape,
        run.info.fields,
        run.path,
    ):
        raise UserError("the weak run must have been trained on data of the same shape and fields, on the same path")
    if run.gammas is not None:
        low, high = run.gammas
        if (outside := gamma[(gamma < low) | (gamma > high)]).size:
            raise UserError(
                f"this network is γ-conditioned, trained for γ in [{low:g}, {high:g}]; got {outside[0]:g}"
            )
        asked = negatives or request.composed or weak, method.guidance, method.rescale, method.interval, method.schedule
        if asked[0] or asked[1:] != ("cfg", 0.0, None, "constant"):
            raise UserError(
                "a γ-conditioned network combines no references: negatives, intervals and rules need another"
            )
        return
    if run.guided and (gamma > 1).any():
        raise UserError(f"this network is guided already (target model_guidance): use gamma 1; got {gamma.max():g}")
    if (
        not run.has_null
        and method.guidance != "autoguidance"
        and (negatives or (gamma != 1).any() or not _full(request.c))
    ):
        raise UserError(
            "this network was trained without null dropout (drop_rate = 0), so it knows no ∅: give every field, "
            "gamma 1 and no negative, or train with drop_rate > 0"
        )
    if method.guidance == "cfg_pp" and method.solver == "euler" and run.path != "linear":
        raise UserError(f"guidance cfg_pp is a first-order step with a noise of its own: use ddim, not {method.solver}")
    parts = run.network, weak and weak.network, False, run.path, method, (run.params, weak and weak.params)
    try:
        guided(*parts, request, weights)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _full(c: Condition) -> bool:
    return all(np.all(p) for p in jax.tree.leaves(c.present))
