"""Watches the metrics of each step: one that is not finite is skipped, and too many in a row end the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from flowguide import processes, storage
from flowguide.errors import UserError


class NonFiniteGuard:
    """Counts steps whose loss, gradient or update is not finite. The step itself leaves the state alone.

    Attributes:
      in_a_row: such steps up to the last one seen; no checkpoint is kept while there are any.
      skipped: all of them.
    """

    def __init__(self, limit: int, workdir: Path, examples: Callable[[int], list[int]]) -> None:
        """Makes a guard.

        Args:
          limit: such steps in a row that are allowed.
          workdir: for ``nonfinite.json``, which names the examples of the step that ended the run.
          examples: step -> numbers of its examples.
        """
        self.in_a_row = self.skipped = 0
        self._limit, self._file, self._examples = limit, workdir / "nonfinite.json", examples

    def look(self, number: int, values: Mapping[str, float], last_kept: str) -> str | None:
        """Looks at the metrics of a step; returns a line to show if it was skipped.

        Raises:
          UserError: if the limit is exceeded; ``last_kept`` says which checkpoint there is.
        """
        if all(map(math.isfinite, values.values())):
            self.in_a_row = 0
            return None
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        what = (
            f"at step {number} the loss is {values['loss']}, the norm of its gradient {values['grad_norm']}, "
            f"the norm of the update {values['update_norm']}"
        )
        if self.in_a_row <= self._limit:
            return f"{what}: skipped, {self.in_a_row} of at most {self._limit} in a row"
        examples = self._examples(number)
        if processes.is_main_process():
            storage.write_text(self._file, json.dumps({"step": number, "examples": examples}) + "\n")
        raise UserError(
            f"{what}, and so in {self.in_a_row} steps in a row: lower lr or clip. {last_kept}; the "
            f"examples of the batch are {examples[:8]} and so on, all in {self._file}"
        )
