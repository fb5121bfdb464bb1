"""What a run tells: a progress line, a JSON-lines log and TensorBoard."""

from __future__ import annotations

import contextlib
import json
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

from flowguide.typing import Device, PyTree


def device_memory(device: Device) -> dict[str, int]:
    """Bytes in use on a device, and the most that were; nothing where it does not say, as CPUs do not."""
    stats = device.memory_stats() or {}
    names = {"memory_in_use": "bytes_in_use", "memory_peak": "peak_bytes_in_use"}
    return {name: stats[theirs] for name, theirs in names.items() if theirs in stats}


def bytes_on(device: Device, tree: PyTree) -> int:
    """What a device holds of a tree of arrays."""
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


class Log:
    """Writes scalars and pictures of a run to ``workdir`` and its progress to the terminal.

    ``metrics.jsonl`` has one object a line; ``tensorboard/`` the same for TensorBoard. A context manager. One that is
    ``silent``, of a process that does not lead, takes everything and writes nothing. What cannot be written to
    ``metrics.jsonl`` raises ``OSError``; what cannot be written to TensorBoard is warned of; a terminal that is gone
    is not missed.
    """

    def __init__(self, workdir: Path, first: int, steps: int, batch_size: int, silent: bool = False) -> None:
        self._lines = (Path(os.devnull) if silent else workdir / "metrics.jsonl").open("a", buffering=1)
        others = set(threading.enumerate())
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first, max_queue=0, write_to_disk=not silent
        )
        self._writers = set(threading.enumerate()) - others  # it writes in a thread
        self._bar = tqdm(
            total=steps,
            initial=first,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.05,
            disable=silent,
        )
        self._silent = silent
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
        except OSError as failure:  # that the run has ended, and why, is told by others
            print(f"warning: the last lines of {self._lines.name} are lost: {failure}", file=sys.stderr)

    def tick(self, loss: float) -> None:
        """One step done, with its loss."""
        rate = self._bar.format_dict.get("rate") or 0.0
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate * self._batch_size:,.0f} examples/s", refresh=False)
        self._to_terminal(self._bar.update)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes ``values`` at ``step``."""
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        for name, value in values.items():
            self._to_board(lambda board, name=name, value=value: board.add_scalar(name, value, step))

    def rate(self, step: int) -> float:
        """Examples a second since the last call."""
        (last, then), now = self._mark, time.perf_counter()
        self._mark = (step, now)
        return (step - last) * self._batch_size / max(now - then, 1e-9)

    def picture(self, step: int, name: str, image: np.ndarray | None) -> None:
        """Shows a uint8 ``(h, w, 3)`` picture in TensorBoard; None where another process has it."""
        if image is not None:
            self._to_board(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if not self._silent:
            self._to_terminal(lambda: self._bar.write(text))

    @staticmethod
    def _to_terminal(act: Callable[[], object]) -> None:
        """Writes to the terminal, if it is there: Ctrl-C also ends what a run is piped into."""
        with contextlib.suppress(OSError):
            act()

    def _to_board(self, act: Callable[[SummaryWriter], None]) -> None:
        """Writes to TensorBoard while that works. Its thread ends where the disk is full, and whoever hands it more
        waits for ever, without a word."""
        if self._board is None:
            return
        try:
            if not all(thread.is_alive() for thread in self._writers):
                raise OSError("its files cannot be written")
            act(self._board)
        except OSError as failure:
            self._board = None
            print(f"warning: nothing more is written for TensorBoard: {failure}", file=sys.stderr)
