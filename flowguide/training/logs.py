"""Logs a run: a progress bar, a JSON-lines file and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from flowguide import mirrors
from flowguide.typing import Device, PyTree


def device_memory(device: Device) -> dict[str, int]:
    """Returns bytes in use on a device and their peak; empty if the device does not report them, as CPUs do not."""
    stats = device.memory_stats() or {}
    names = {"memory_in_use": "bytes_in_use", "memory_peak": "peak_bytes_in_use"}
    return {name: stats[theirs] for name, theirs in names.items() if theirs in stats}


def bytes_on(device: Device, tree: PyTree) -> int:
    """Returns the bytes of a tree of arrays that a device holds."""
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


class Log:
    """Writes scalars and pictures of a run to ``workdir`` and its progress to the terminal; a context manager.

    ``metrics.jsonl`` has one JSON object per line; ``tensorboard/`` has the same values and the pictures. With
    ``silent``, for processes other than the main one, it writes nothing. If ``metrics.jsonl`` cannot be written, it
    raises ``OSError``; if TensorBoard's files cannot, it prints a warning; if the terminal is gone, it carries on. If
    ``workdir`` is in a bucket, the files grow in a local folder, which is copied there every minute and at the end. A
    run that ends at ``deadline``, of ``time.monotonic``, shows the time that is left.
    """

    def __init__(
        self,
        workdir: Path,
        first: int,
        steps: int,
        batch_size: int,
        silent: bool = False,
        deadline: float = math.inf,
    ) -> None:
        self._copying = contextlib.ExitStack()
        folder = workdir if silent else self._copying.enter_context(mirrors.growing(workdir, "metrics.jsonl"))
        self._lines = (Path(os.devnull) if silent else folder / "metrics.jsonl").open("a", buffering=1)
        others = set(threading.enumerate())
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first, max_queue=0, write_to_disk=not silent
        )
        self._writers = set(threading.enumerate()) - others  # SummaryWriter writes in a thread of its own
        self._bar = tqdm(
            total=None if deadline < math.inf else steps,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.05,
            disable=silent,
        )
        self._silent = silent
        self._deadline = deadline
        self._batch_size = batch_size
        self._mark = (first, time.perf_counter())

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._to_terminal(self._bar.close)
        self._to_board(lambda board: board.close())
        try:
            self._lines.close()
        except OSError as failure:  # only a warning, so as not to hide why the run ended
            print(f"warning: the last lines of {self._lines.name} are lost: {failure}", file=sys.stderr)
        self._copying.close()

    def tick(self, loss: float) -> None:
        """Advances the progress bar by one step and shows the loss."""
        rate = self._bar.format_dict.get("rate") or 0.0
        left = ""
        if self._deadline < math.inf:
            seconds = max(0, round(self._deadline - time.monotonic()))
            left = f"{seconds // 60}:{seconds % 60:02} left, "
        self._bar.set_postfix_str(f"{left}loss {loss:.4f}, {rate * self._batch_size:,.0f} examples/s", refresh=False)
        self._to_terminal(self._bar.update)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes ``values`` at ``step``."""
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        for name, value in values.items():
            self._to_board(lambda board, name=name, value=value: board.add_scalar(name, value, step))

    def rate(self, step: int) -> float:
        """Returns examples per second since the last call."""
        (last, then), now = self._mark, time.perf_counter()
        self._mark = (step, now)
        return (step - last) * self._batch_size / max(now - then, 1e-9)

    def picture(self, step: int, name: str, image: np.ndarray | None) -> None:
        """Shows a uint8 ``(h, w, 3)`` picture in TensorBoard; None, for processes without the picture, does nothing."""
        if image is not None:
            self._to_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def say(self, text: str | None) -> None:
        """Prints a line above the progress bar; None prints nothing."""
        if text is not None and not self._silent:
            self._to_terminal(lambda: self._bar.write(text))

    @staticmethod
    def _to_terminal(act: Callable[[], object]) -> None:
        """Writes to the terminal if it still exists: Ctrl-C also ends the program into which a run is piped."""
        with contextlib.suppress(OSError):
            act()

    def _to_board(self, act: Callable[[SummaryWriter], None]) -> None:
        """Writes to TensorBoard until that fails.

        Checks the writer's thread first: on a full disk it dies, and the next write would block forever.
        """
        if self._board is None:
            return
        try:
            if not all(thread.is_alive() for thread in self._writers):
                raise OSError("its files cannot be written")
            act(self._board)
        except OSError as failure:
            self._board = None
            print(f"warning: nothing more is written for TensorBoard: {failure}", file=sys.stderr)
