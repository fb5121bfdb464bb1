"""Training, from a config to a trained state, in chapters: build, open the folder, restore, loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from flowguide import build, checkpoint, processes, sampling, snapshots, storage
from flowguide.autoencoder import FILE, Decoder, load_decoder
from flowguide.build import Splits
from flowguide.config import Config, check_numbers, check_types, complete, config_text
from flowguide.data import Dataset, batches, check_fingerprint, fingerprint, numbers_of_batch
from flowguide.errors import UserError, listed, one_line
from flowguide.kinds import checked
from flowguide.model import Model
from flowguide.networks import Network, count_parameters
from flowguide.schema import Latents, info_to_json
from flowguide.shutdown import failing_at_once, interrupted_by_signals
from flowguide.training.advice import hardly_trained, slow_on_cpu, unused_fields
from flowguide.training.assembly import Assembly, assemble
from flowguide.training.evaluators import Context, Evaluator, made
from flowguide.training.guard import NonFiniteGuard
from flowguide.training.logs import Log, bytes_on, device_memory
from flowguide.training.optimizer import slower
from flowguide.training.parallel import abstract, lay_out, parallelize, replicas_agree
from flowguide.training.profiling import ProfileWindow, check_window
from flowguide.training.start import load_start, started
from flowguide.training.step import ReadOnly, TrainState
from flowguide.training.teacher import load_teacher
from flowguide.typing import PyTree
from flowguide.workdir import open_workdir


class Job(NamedTuple):
    """Everything that is built before anything is written or computed.

    Attributes:
      config: complete.
      workdir: of the run.
      assembly: the model and its step.
      data: the training split.
      stream: its batches, this process's share.
      position_of: fingerprint of the stream, without which a position in it means nothing.
      evaluators: what is measured and drawn on the way.
      lesson: the teacher's parameters, laid out, or None.
      start: parameters to start from, of ``load_start``; None for fresh ones.
      files: contents by name that lie beside the checkpoints.
    """

    config: Config
    workdir: Path
    assembly: Assembly
    data: Dataset
    stream: Any
    position_of: dict[str, Any]
    evaluators: list[Evaluator]
    lesson: PyTree
    start: PyTree
    files: dict[str, str | bytes]


@checked
def train(
    config: Config,
    workdir: str | Path,
    stop_after: int | None = None,
    *,
    force: bool = False,
    profile: tuple[int, int] | None = None,
    data: Splits | None = None,
    network: Network | None = None,
    minutes: float | None = None,
) -> TrainState:
    """Trains, from the last checkpoint in ``workdir`` if there is one; returns the state at the end.

    Args:
      config: from ``config.default``, changed.
      workdir: of the run; no other process may train there at the same time.
      stop_after: a step after which to save and stop.
      force: resume although settings have changed, where the state still fits.
      profile: the first and the last step to be traced.
      data: to train on and validate with, if they are not those that the config names.
      network: the network, if it is not the one that the config names.
      minutes: after which the step at hand is the last, counted from this call; None for no limit.

    Raises:
      UserError: if a setting cannot be, another process trains in ``workdir``, or the folder can no longer be written
        to; the message says where the state is then.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if minutes is not None and not minutes > 0:
        raise UserError(f"minutes must be above 0; got {minutes}")
    if minutes is not None and processes.is_distributed():
        raise UserError("a limit of minutes is for one process; several stop together after a step: set steps")
    workdir = storage.path(workdir)
    check_types(config)
    check_window(profile, 0, config.steps)
    job = _build(config, workdir, stop_after, data, network)
    with contextlib.ExitStack() as held:
        check_folder = open_workdir(workdir, job.config, job.files, force, held)
        saves = checkpoint.manager(workdir, job.config.keep)
        state = _restore(job, saves)
        check_window(profile, int(state.step), job.config.steps)
        snapshot_saves = snapshots.manager(workdir, job.config.posthoc.keep) if state.tracked else None
        state = _loop(job, saves, snapshot_saves, state, check_folder, stop_after, profile, deadline)
        processes.wait("all is written")
    return state


def _build(config: Config, workdir: Path, stop_after: int | None, data: Splits | None, network: Network | None) -> Job:
    """Whatever can be wrong is found out here, before anything is written or computed."""
    checkpoint.check_place(workdir)
    config = complete(config)
    processes.check_same("config", [config.to_dict(), stop_after])
    devices = jax.devices()
    check_numbers(config, len(devices))
    build.layout(config, devices)  # refused before data are read
    train_data, test = data or build.splits(config)
    teacher = load_teacher(config, train_data.info)
    assembly = assemble(config, train_data.info, devices, teacher, network)
    start = None if checkpoint.any_in(workdir) else load_start(config, assembly.model)
    decoder, autoencoder = _decoder(train_data)
    assembly = assembly._replace(model=assembly.model._replace(decoder=decoder))
    lesson = None if teacher is None else lay_out(teacher.params, assembly.layout)
    evaluators = made(Context(config, assembly, train_data, test, workdir, lesson))
    ranks = jax.process_count()
    stream = batches(
        train_data, config.batch_size // ranks, config.seed, process_index=jax.process_index(), process_count=ranks
    )
    position_of = fingerprint(train_data, config.batch_size, config.seed)
    processes.check_same("data set", position_of)
    info = json.dumps(info_to_json(train_data.info), indent=1) + "\n"
    files = {"config.json": config_text(config), "info.json": info, **autoencoder}
    return Job(config, workdir, assembly, train_data, stream, position_of, evaluators, lesson, start, files)


def _decoder(data: Dataset) -> tuple[Decoder | None, dict[str, bytes]]:
    """Returns what makes images of the latents of these data, and its file by name; none for other data."""
    if not isinstance(data.info.examples, Latents):
        return None, {}
    if data.folder is None:
        raise UserError(f"{data.info.name} has latents without an autoencoder: `flowguide data encode` makes both")
    return load_decoder(data.folder, data.info.examples), {FILE: (data.folder / FILE).read_bytes()}


def _restore(job: Job, saves: ocp.CheckpointManager) -> TrainState:
    """Returns the last state that was saved, or a fresh one, and moves the stream to its position."""
    init, key, layout = job.assembly.init, job.assembly.init_key, job.assembly.layout
    processes.check_same("list of checkpoints", sorted(saves.all_steps()))
    if saves.latest_step() is None:
        fresh = init(key, shardings=layout.shardings)
        return fresh if job.start is None else started(fresh, job.start)
    like = abstract(jax.eval_shape(init, key), layout)
    state, saved_at = checkpoint.restore(saves, like, job.stream, info_to_json(job.data.info))
    check_fingerprint(saved_at, job.position_of)
    return state


def _loop(
    job: Job,
    saves: ocp.CheckpointManager,
    snapshot_saves: ocp.CheckpointManager | None,
    state: TrainState,
    check_folder: Callable[[], None],
    stop_after: int | None,
    profile: tuple[int, int] | None,
    deadline: float,
) -> TrainState:
    """Runs the steps; a step is dispatched before the metrics of the one before are read, so no device waits."""
    config, first = job.config, int(state.step)
    step = parallelize(job.assembly.layout, job.assembly.step_with(job.assembly.layout.shares))
    examples = partial(numbers_of_batch, job.data, config.batch_size, config.seed)
    guard = NonFiniteGuard(config.nonfinite_limit, job.workdir, lambda number: examples(number - 1))
    window = ProfileWindow(profile if processes.is_main_process() else None, job.workdir / "profile")
    share, rank = config.batch_size // jax.process_count(), jax.process_index()
    index = np.arange(rank * share, (rank + 1) * share, dtype=np.int32)
    log_to = Log(job.workdir, first, config.steps, config.batch_size, not processes.is_main_process(), deadline)
    factor_of = partial(_slower, config, time.monotonic(), deadline)
    closing = checkpoint.closing(*filter(None, (saves, snapshot_saves)))
    with interrupted_by_signals() as interrupted, closing, log_to as log, failing_at_once():
        _introduce(job, state, log, timed=deadline < math.inf)
        left = partial(_examples_left, job, first, timed=deadline < math.inf)
        report, last_kept = partial(_report, job, saves, guard, log, left), partial(_last_kept, saves)
        pending: tuple[int, float, dict[str, jax.Array]] | None = None
        due = False
        with _rescuing(job, lambda: state):
            if snapshot_saves is not None:
                snapshots.resume(snapshot_saves, state, info_to_json(job.data.info))
            for number in range(first + 1, config.steps + 1):
                window.before(number)
                batch, started = next(job.stream), time.perf_counter()
                factor = factor_of(number)
                read = ReadOnly(job.lesson, None if factor is None else np.float32(factor))
                state, metrics = step(state, batch._replace(index=index), read)
                if number == first + 1:  # the call that compiles; what it computes goes on in the background
                    log.say(_compiled(state, time.perf_counter() - started))
                if pending is not None:
                    report(*pending)
                pending = number, 1.0 if factor is None else factor, metrics

                last = number == config.steps or time.monotonic() > deadline
                stop = number == stop_after or interrupted(number)
                due = due or last or stop or number % config.checkpoint_every == 0
                if due:  # no checkpoint is kept of a step that was not seen to be finite
                    report(*pending)
                    pending = None
                save = due and not guard.in_a_row  # while steps are skipped the last good checkpoint stays
                due = due and not save
                if due and (last or stop):
                    log.say(f"step {number} was skipped, and no checkpoint is kept of it. {last_kept()}")
                scores = _evaluate(job, state, number, last, log)
                log.say(window.after(number, state, stop))
                if snapshot_saves is not None and (save or number % config.posthoc.every == 0):
                    _save_snapshot(job, saves, snapshot_saves, state, check_folder, wait=last or stop)
                if save:
                    _save(job, saves, state, check_folder, scores, wait=last or stop)
                _evaluate_optional(job, state, number, last, log)
                if stop:
                    place = "there" if save else "the last checkpoint"
                    log.say(f"stopped after step {number}: the same command resumes from {place}")
                if stop or last:
                    break
        late = time.monotonic() > deadline
        ended = int(state.step) == config.steps or late
        if late:
            log.say(hardly_trained(int(state.step)))
        _conclude(job, saves, state, ended and first < int(state.step), log)
    return state


def _slower(config: Config, began: float, deadline: float, number: int) -> float | None:
    """Returns the factor of the learning rate that a limit of time makes necessary; None without a limit."""
    if deadline == math.inf:
        return None
    of_time = (time.monotonic() - began) / max(deadline - began, 1e-9)
    return slower(config.decay, (number - 1) / config.steps, of_time)


def _introduce(job: Job, state: TrainState, log: Log, *, timed: bool) -> None:
    config, devices, ranks, info = job.config, jax.devices(), jax.process_count(), job.data.info
    end = " on" if timed else f" to {config.steps}"
    log.say(
        f"{info.name}: {job.data.size:,} examples; conditioned on {listed(info.fields) or 'nothing'}"
        f"{unused_fields(config, job.data)}; "
        f"{config.network.name}: {count_parameters(state.params):,} parameters; {len(devices)} x "
        f"{devices[0].device_kind}{f' in {ranks} processes' * (ranks > 1)}; from step {int(state.step)}{end}"
    )
    if (warmup := build.warmup(config)) < config.warmup:
        log.say(f"a warm-up of {config.warmup} steps is as long as the run: it is shortened to {warmup}")
    if ranks > 1:
        log.say("if one process dies the others end within a minute: start all again, and the run resumes")


def _compiled(state: TrainState, seconds: float) -> str:
    held = bytes_on(jax.local_devices()[0], state) / 2**20
    return f"compiled in {seconds:.1f} s; each device holds {held:,.1f} MiB of the state"


def _last_kept(saves: ocp.CheckpointManager) -> str:
    kept = saves.latest_step()
    return "No checkpoint was kept" if kept is None else f"The last checkpoint is of step {kept}"


def _examples_left(job: Job, first: int, number: int, *, timed: bool) -> int | None:
    """Returns what is left to train on, once: at the second step that is logged, as the first includes compilation."""
    every = job.config.log_every
    if timed or not every < number - first <= 2 * every:
        return None
    return (job.config.steps - number) * job.config.batch_size


def _report(
    job: Job,
    saves: ocp.CheckpointManager,
    guard: NonFiniteGuard,
    log: Log,
    left: Callable[[int], int | None],
    number: int,
    factor: float,
    metrics: dict[str, jax.Array],
) -> None:
    """Reads the metrics of a step, which waits for it; shows and logs them, and the rate, slower by ``factor``."""
    values = {name: float(value) for name, value in metrics.items()}
    try:
        skipped = guard.look(number, values, _last_kept(saves))
    except UserError:
        checkpoint.finish(saves)
        raise
    if skipped:
        log.say(skipped)
        values["skipped"] = guard.skipped
    log.tick(values["loss"])
    if number % job.config.log_every == 0 or number == job.config.steps:
        rate = factor * np.asarray(job.assembly.rate(number - 1)).item()
        values |= {"lr": rate, "examples_per_s": log.rate(number)}
        if (examples := left(number)) is not None:
            log.say(slow_on_cpu(job.config, jax.devices()[0].platform, examples, values["examples_per_s"]))
        log.scalars(number, values | device_memory(jax.local_devices()[0]))


def _evaluate(job: Job, state: TrainState, number: int, last: bool, log: Log) -> dict[str, float]:
    """Runs the evaluators whose scores are kept with the checkpoint; returns all scores."""
    scores: dict[str, float] = {}
    for evaluator in job.evaluators:
        if not evaluator.optional and evaluator.due(number, last):
            scores |= evaluator.evaluate(state.ema, number).scores
    if scores:
        log.scalars(number, scores)
    return scores


def _evaluate_optional(job: Job, state: TrainState, number: int, last: bool, log: Log) -> None:
    """Runs the evaluators that may fail: a picture is no reason to end a run."""
    for evaluator in job.evaluators:
        if not (evaluator.optional and evaluator.due(number, last)):
            continue
        try:
            found = evaluator.evaluate(state.ema, number)
            log.picture(number, evaluator.name, found.picture)
            if found.scores:
                log.scalars(number, found.scores)
        except Exception as error:
            if processes.is_distributed() and not isinstance(error, UserError):
                raise  # the others may be waiting for this one
            reason = one_line(error) or type(error).__name__
            log.say(f"no {evaluator.name} at step {number}: {reason}")


def _save(
    job: Job,
    saves: ocp.CheckpointManager,
    state: TrainState,
    check_folder: Callable[[], None],
    scores: dict[str, float],
    *,
    wait: bool,
) -> None:
    check_folder()
    if not replicas_agree(state):
        checkpoint.finish(saves)
        raise RuntimeError(f"the devices disagree about the state at step {int(state.step)}; nothing was saved")
    info, ranked = info_to_json(job.data.info), checkpoint.BEST_BY in scores  # scores without that one rank nothing
    checkpoint.save(saves, state, job.stream, job.position_of, scores if ranked else None, info=info, wait=wait)


def _save_snapshot(
    job: Job,
    saves: ocp.CheckpointManager,
    snapshot_saves: ocp.CheckpointManager,
    state: TrainState,
    check_folder: Callable[[], None],
    *,
    wait: bool,
) -> None:
    check_folder()
    if processes.is_distributed():
        checkpoint.finish(saves)  # see ``snapshots.save``
    snapshots.save(snapshot_saves, state, info_to_json(job.data.info), wait=wait)


@contextlib.contextmanager
def _rescuing(job: Job, state: Callable[[], TrainState]) -> Generator[None]:
    """If the folder can no longer be written to (a full disk, a folder that is gone), saves the state elsewhere."""
    try:
        yield
    except (checkpoint.SaveError, OSError) as error:
        try:
            place = checkpoint.rescue(state(), job.stream, job.position_of, job.files)
            cure = f"saved to {place}: make room and move its checkpoints here, or resume with --workdir={place}"
        except checkpoint.SaveError as second:
            cure = f"lost, as it could not be saved elsewhere either ({second}): make room"
        raise UserError(
            f"{job.workdir} cannot be written to ({error}); the state of step {int(state().step)} was {cure}"
        ) from error


def _conclude(job: Job, saves: ocp.CheckpointManager, state: TrainState, ended: bool, log: Log) -> None:
    """After the last step: looks whether ∅ was learned, and says what to do next."""
    if saves.latest_step() is None:
        return
    if job.config.task == "autoencoder":
        of = job.config.data.path or job.config.data.name
        log.say(f"encode with it: flowguide data encode {of} --vae={job.workdir} --out={job.data.info.name}_latents")
    if job.config.task != "flow":
        return
    if ended and int(state.step) == saves.latest_step():
        model: Model = job.assembly.model._replace(params=state.ema, step=int(state.step))
        if sampling.guided_by_null(model):
            null = sampling.check_null(model, job.config.seed)  # all processes together
            if processes.is_main_process():
                sampling.keep_null(job.workdir, model.step, null)
    shown = f"pictures are in {job.workdir / 'previews'}; " if (job.workdir / "previews").exists() else ""
    log.say(f"{shown}draw {'more ' if shown else ''}with: python sample.py --workdir={job.workdir}")
