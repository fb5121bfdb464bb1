"""Traces some steps of a run for TensorBoard or XProf."""

from __future__ import annotations

import contextlib
from pathlib import Path

import jax

from flowguide import mirrors
from flowguide.errors import UserError
from flowguide.typing import PyTree


class ProfileWindow:
    """Starts a trace before one step and ends it after another."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        """Makes a window from the first to the last step to be traced; None traces nothing."""
        self._steps, self._folder, self._open = steps, folder, contextlib.ExitStack()

    def before(self, number: int) -> None:
        """Starts the trace if this step is the first."""
        if self._steps and number == self._steps[0]:
            jax.profiler.start_trace(str(self._open.enter_context(mirrors.staged(self._folder))))

    def after(self, number: int, state: PyTree, stopping: bool) -> str | None:
        """Ends the trace if this step is the last, or the run stops; returns a line to show."""
        if not self._steps or not self._steps[0] <= number <= self._steps[1]:
            return None
        if number < self._steps[1] and not stopping:
            return None
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._open.close()
        return f"steps {self._steps[0]} to {number} are traced in {self._folder}"


def check_window(steps: tuple[int, int] | None, first: int, last: int) -> None:
    """Raises ``UserError`` unless the window lies after step ``first`` and ends by step ``last``."""
    if steps and not first < steps[0] <= steps[1] <= last:
        raise UserError(f"expected profile_steps between {first + 1} and {last}; got {steps}")
