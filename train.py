"""Trains a conditional velocity network by flow matching, or a classifier of noisy data to guide one.

python train.py --config=configs/avatars.py --workdir=runs/avatars [--config.lr=3e-4 ...]

Running the same command again goes on from the last checkpoint, to the bit. Every setting of the config can be changed
on the command line; flowguide/build.py says what they mean.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

if __name__ == "__main__":

    def _interrupted(*_: object) -> None:
        print("train.py: interrupted", file=sys.stderr)
        os._exit(130)

    signal.signal(signal.SIGINT, _interrupted)  # the imports below take seconds

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from flowguide import build, checkpoint, cli, couplings, processes, sampling
from flowguide.cli import failing_at_once, folder, interrupted_by_signals, join_processes, prepare_workdir, run_script
from flowguide.condition import given
from flowguide.data import (
    DataInfo,
    Dataset,
    batches,
    check_fingerprint,
    fingerprint,
    info_to_json,
    numbers_of_batch,
    to_model,
)
from flowguide.errors import UserError
from flowguide.lock import only_trainer
from flowguide.networks import Network, count_parameters
from flowguide.pictures import save_figure
from flowguide.training.logs import Log, bytes_on, device_memory
from flowguide.training.parallel import Layout, abstract, lay_out, parallelize, replicas_agree
from flowguide.training.step import Batch, TrainState, init_state, make_loss, make_step
from flowguide.typing import PyTree

flags.adopt_module_key_flags(cli)
CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment, a file of configs/")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run: checkpoints, logs and pictures")
FORCE = flags.DEFINE_bool(
    "force", False, f"go on with a run whose settings have changed, where they are of {', '.join(build.FORCEABLE)}"
)
PROFILE_STEPS = flags.DEFINE_list(
    "profile_steps", None, "trace from this step to that, as 100,110, into WORKDIR/profile for TensorBoard or XProf"
)
CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    None,
    "compiled programs are kept here for the next start; by default WORKDIR/compiled. They are run as they are",
)
STOP_AFTER = flags.DEFINE_integer("stop_after", None, "save and stop after this step, as if interrupted", lower_bound=1)


def main() -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("expected --config=configs/NAME.py and --workdir=DIR; --help lists all flags")
    workdir = folder(WORKDIR.value)
    join_processes()
    profile = None
    if PROFILE_STEPS.value is not None:
        try:
            start, stop = (int(n) for n in PROFILE_STEPS.value)
        except ValueError:
            raise UserError(f"--profile_steps takes two steps, as 100,110; got {PROFILE_STEPS.value}") from None
        profile = start, stop
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", CACHE_DIR.value or str(workdir / "compiled"))
    train(CONFIG.value, workdir, STOP_AFTER.value, force=FORCE.value, profile=profile)


def train(
    config: build.Config,
    workdir: Path,
    stop_after: int | None = None,
    *,
    force: bool = False,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Trains, from the last checkpoint in ``workdir`` if there is one; the state at the end.

    Args:
      config: as ``build.default`` describes it.
      workdir: of the run; no other process may train there at the same time.
      stop_after: a step after which to save and stop.
      force: go on although settings have changed, where the state still fits.
      profile: the first and the last step to be traced.

    Raises:
      UserError: if a setting cannot be, another process trains in ``workdir``, or the folder can no longer be written
        to; the message tells where the state is then.
    """
    with contextlib.ExitStack() as held:
        return _train(config, workdir, stop_after, force, profile, held)


def _train(
    config: build.Config,
    workdir: Path,
    stop_after: int | None,
    force: bool,
    profile: tuple[int, int] | None,
    held: contextlib.ExitStack,
) -> TrainState:
    # Build. Whatever can be wrong is found out here, before anything is written or computed.
    processes.check_same("config", [config.to_dict(), stop_after])
    devices, rank, ranks = jax.devices(), jax.process_index(), jax.process_count()
    build.check_numbers(config, len(devices))
    layout = build.layout(config, devices)
    task, recipe, average = build.task(config), build.recipe(config), build.profile(config)
    optimizer, schedule = build.optimizer(config)
    data = build.dataset(config, config.data.split)
    test = build.dataset(config, config.data.test_split, data.info.fields)
    network = build.network(config, data.info)
    teacher, previewing = _teacher(config, data.info), _preview_method(config)
    held_out = _held_out(test, config.eval_examples, layout)
    share = config.batch_size // ranks
    stream = batches(data, share, config.seed, process_index=rank, process_count=ranks)
    position_of = fingerprint(data, config.batch_size, config.seed)
    processes.check_same("data set", position_of)
    about = info_to_json(data.info)
    files = {"config.json": build.config_text(config), "info.json": json.dumps(about, indent=1) + "\n"}
    check_folder = _open(workdir, config, files, force, held)

    # A state: a fresh one, or the last that was saved.
    init_key, draw_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    saves = checkpoint.manager(workdir, config.keep)
    processes.check_same("list of checkpoints", sorted(saves.all_steps()))
    if saves.latest_step() is None:
        state = init_state(network, optimizer, init_key, layout.shardings)
    else:
        like = jax.eval_shape(partial(init_state, network, optimizer), init_key)
        state, saved_at = checkpoint.restore(saves, abstract(like, layout), stream, about)
        check_fingerprint(saved_at, position_of)
    first = int(state.step)
    if profile and not first < profile[0] <= profile[1] <= config.steps:
        raise UserError(f"expected profile_steps between {first + 1} and {config.steps}; got {profile}")

    teach, lesson = (teacher.network.velocity, lay_out(teacher.params, layout)) if teacher else (None, None)
    recipe = recipe._replace(coupling=couplings.within(recipe.coupling, layout.shares))
    loss = make_loss(network, recipe, to_model, draw_key, config.flip, task, teach)
    step = parallelize(layout, make_step(loss, optimizer, average, config.accumulate))
    undropped = recipe._replace(drop_rate=0.0, drop_field_rate=0.0)
    test_loss = make_loss(network, undropped, to_model, test_key, task=task, teacher=teach)
    validate = _validation(test_loss, lesson, held_out, layout)
    draws = config.task == "flow"
    preview = _preview(config, network, test, previewing, workdir) if draws and config.preview.every else None

    # Loop. A step is dispatched before the loss of the one before it is read, so that no device waits for the host.
    log_to = Log(workdir, first, config.steps, config.batch_size, silent=not processes.is_main_process())
    with interrupted_by_signals() as interrupted, checkpoint.closing(saves), log_to as log, failing_at_once():
        log.say(
            f"{data.info.name}: {data.size:,} examples; {config.network.name}: {count_parameters(state.params):,} "
            f"parameters; {len(devices)} x {devices[0].device_kind}{f' in {ranks} processes' * (ranks > 1)}; from step "
            f"{first} to {config.steps}"
        )
        if (warmup := build.warmup(config)) < config.warmup:
            log.say(f"a warm-up of {config.warmup} steps is as long as the run: it is shortened to {warmup}")
        if ranks > 1:
            log.say("if one process dies the others end within a minute: start all again, and the run goes on")
        index, late = np.arange(rank * share, (rank + 1) * share, dtype=np.int32), None
        in_a_row, skipped, due = 0, 0, False
        tracing = profile if processes.is_main_process() else None

        def last_kept() -> str:
            kept = saves.latest_step()
            return "No checkpoint was kept" if kept is None else f"The last checkpoint is of step {kept}"

        def report(number: int, metrics: dict[str, jax.Array]) -> None:
            nonlocal in_a_row, skipped
            values = {name: float(value) for name, value in metrics.items()}
            if all(map(math.isfinite, values.values())):
                in_a_row = 0
            else:  # the step has left the state alone
                in_a_row, skipped = in_a_row + 1, skipped + 1
                what = (
                    f"at step {number} the loss is {values['loss']}, the norm of its gradient {values['grad_norm']}, "
                    f"the norm of the update {values['update_norm']}"
                )
                if in_a_row > config.nonfinite_limit:
                    examples = numbers_of_batch(data, config.batch_size, config.seed, number - 1)
                    if processes.is_main_process():
                        told = json.dumps({"step": number, "examples": examples})
                        (workdir / "nonfinite.json").write_text(told + "\n")
                    checkpoint.finish(saves)
                    raise UserError(
                        f"{what}, and so in {in_a_row} steps in a row: lower lr or clip. {last_kept()}; the "
                        f"examples of the batch are {examples[:8]} and so on, all in {workdir / 'nonfinite.json'}"
                    )
                log.say(f"{what}: skipped, {in_a_row} of at most {config.nonfinite_limit} in a row")
                values["skipped"] = skipped
            log.tick(values["loss"])
            if number % config.log_every == 0 or number == config.steps:
                values |= {"lr": np.asarray(schedule(number - 1)).item(), "examples_per_s": log.rate(number)}
                log.scalars(number, values | device_memory(jax.local_devices()[0]))

        def keep(number: int, scores: dict[str, float], wait: bool) -> None:
            check_folder()
            if not replicas_agree(state):
                checkpoint.finish(saves)
                raise RuntimeError(f"the devices disagree about the state at step {number}; nothing was saved")
            checkpoint.save(saves, state, stream, position_of, scores or None, info=about, wait=wait)

        def show(preview: Callable[[PyTree, int], np.ndarray | None], number: int) -> None:
            try:
                log.picture(number, "samples", preview(state.ema, number))
            except Exception as error:  # whatever it is, a picture is no reason to end a run
                if processes.is_distributed() and not isinstance(error, UserError):
                    raise  # the others may be waiting for this one
                log.say(f"no preview at step {number}: {' '.join(str(error).split())[:300] or type(error).__name__}")

        try:
            for number in range(first + 1, config.steps + 1):
                if tracing and number == tracing[0]:
                    jax.profiler.start_trace(str(workdir / "profile"))
                batch, started = next(stream), time.perf_counter()
                state, metrics = step(state, Batch(batch.x, batch.value, index), lesson)
                if number == first + 1:  # the call that compiles; what it computes goes on in the background
                    log.say(
                        f"compiled in {time.perf_counter() - started:.1f} s; each device holds "
                        f"{bytes_on(jax.local_devices()[0], state) / 2**20:,.1f} MiB of the state"
                    )
                if late is not None:
                    report(number - 1, late)
                late = metrics

                last, stop = number == config.steps, number == stop_after or interrupted(number)
                due = due or last or stop or number % config.checkpoint_every == 0
                if due:  # nothing is kept of a step that was not seen to be finite
                    report(number, late)
                    late = None
                save = due and not in_a_row  # while steps are skipped the last good checkpoint stays
                due = due and not save
                if due and (last or stop):
                    log.say(f"step {number} was skipped, and no checkpoint is kept of it. {last_kept()}")
                scores = {}
                if last or number % config.eval_every == 0:
                    scores = {checkpoint.BEST_BY: validate(state.ema)}
                    log.scalars(number, scores)
                if tracing and tracing[0] <= number <= tracing[1] and (number == tracing[1] or stop):
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    log.say(f"steps {tracing[0]} to {number} are traced in {workdir / 'profile'}")
                if save:
                    keep(number, scores, wait=last or stop)
                if preview and (last or number % config.preview.every == 0):
                    show(preview, number)
                if stop:
                    place = "there" if save else "the last checkpoint"
                    log.say(f"stopped after step {number}: the same command goes on from {place}")
                    break
        except (checkpoint.SaveError, OSError) as error:  # a full disk, a folder that is gone
            try:
                place = checkpoint.rescue(state, stream, position_of, files)
                cure = f"saved to {place}: make room and move its checkpoints here, or go on with --workdir={place}"
            except checkpoint.SaveError as second:
                cure = f"lost, as it could not be saved elsewhere either ({second}): make room"
            raise UserError(
                f"{workdir} cannot be written to ({error}); the state of step {int(state.step)} was {cure}"
            ) from error
        if draws and first < int(state.step) == saves.latest_step() == config.steps:
            _keep_null(config, data.info, network, state, workdir)
        if draws and saves.latest_step() is not None:
            shown = f"pictures are in {workdir / 'previews'}; " if (workdir / "previews").exists() else ""
            log.say(f"{shown}draw {'more ' if shown else ''}with: python sample.py --workdir={workdir}")
    processes.wait("all is written")
    return state


def _open(
    workdir: Path, config: build.Config, files: Mapping[str, str], force: bool, held: contextlib.ExitStack
) -> Callable[[], None]:
    """The folder of the run: one process makes it, or sees that the run in it is this one, and all must find it.

    A run that never came to a checkpoint claims no folder: another begins there anew. ``files`` are its texts by name.
    That process keeps the folder to itself until ``held`` is closed; what is returned raises ``OSError`` if it is no
    longer there.
    """

    def check_folder() -> None:
        """Of the others, which hold nothing."""

    mark = workdir / f".start-{processes.broadcast_from_main(time.time_ns() % 2**31)}"
    if processes.is_main_process():
        prepare_workdir(workdir)
        check_folder = held.enter_context(only_trainer(workdir))
        if (workdir / "config.json").exists() and checkpoint.any_in(workdir):
            build.check_same_run(build.read_config(workdir), config, force)
        mark.touch()
    processes.wait("workdir")
    found = processes.all_true(mark.exists())
    if processes.is_main_process():
        mark.unlink()
    if not found:
        raise UserError(f"not all processes find the run in {workdir}: give a folder that their machines share")
    if processes.is_main_process():
        prepare_workdir(checkpoint.folder(workdir))
        for name, text in files.items():
            build.replace_text(workdir / name, text)
    return check_folder


def _teacher(config: build.Config, info: DataInfo) -> sampling.Run | None:
    """The run that this one distils, if it does."""
    if config.target.name != "distilled":
        return None
    workdir = Path(config.target.workdir)
    theirs = build.read_config(workdir)
    if theirs.task != "flow" or build.takes_gamma(theirs):
        raise UserError(f"the teacher in {workdir} must be a velocity that is not told γ: name a run of target plain")
    run = sampling.load(workdir)
    if not run.has_null:
        raise UserError(f"the teacher in {workdir} knows no ∅ (drop_rate = 0): name a run with drop_rate > 0")
    for name, got, expected in (
        ("shape", run.info.shape, info.shape),
        ("fields", run.info.fields, info.fields),
        ("path", run.path, config.path),
    ):
        if got != expected:
            raise UserError(f"the teacher in {workdir} has {name} {got}; expected that of this run, {expected}")
    return run


def _held_out(test: Dataset, count: int, layout: Layout) -> Batch:
    """The share of this process of the first ``count`` examples of the test split.

    Raises:
      UserError: if there are fewer than devices.
    """
    count = min(count, test.size)
    share = count // layout.mesh.size * layout.mesh.size // jax.process_count()
    if not share:
        raise UserError(f"{count} examples to validate with are fewer than the devices, {layout.mesh.size}: take more")
    numbers = np.arange(share, dtype=np.int32) + share * jax.process_index()
    batch = test.read(numbers)
    return Batch(batch.x, batch.value, numbers)


def _validation(loss: Callable, teacher: PyTree, batch: Batch, layout: Layout) -> Callable[[PyTree], float]:
    """The loss of parameters on a batch, always with the same draws."""
    mean_loss = parallelize(layout, lambda mean: lambda params, *rest: mean(loss(params, 0, *rest)), donate=False)
    return lambda params: float(mean_loss(params, batch, teacher))


def _preview_method(config: build.Config) -> sampling.SamplerConfig:
    """How previews are integrated.

    Raises:
      UserError: for settings that cannot be.
    """
    if not config.preview.gammas:
        raise UserError("preview.gammas are the scales at which previews are drawn; got none: (1.0,), say")
    try:
        return sampling.resolve_defaults(
            sampling.SamplerConfig(solver=config.preview.solver, steps=config.preview.steps)
        )
    except UserError as error:
        raise UserError(f"preview: {error}") from error


def _preview(
    config: build.Config, network: Network, test: Dataset, method: sampling.SamplerConfig, workdir: Path
) -> Callable[[PyTree, int], np.ndarray | None]:
    """Samples with noise and conditions that stay the same over the run, at each scale of ``preview.gammas``.

    All processes draw, one has the picture.
    """
    p = config.preview
    num = min(p.num, test.size)
    c = given(test.read(np.arange(num)).value)
    target = build.target(config)
    gammas = tuple(config.preview.gammas)
    if target.gammas is not None:
        gammas = tuple(np.unique(np.clip(gammas, *target.gammas)).tolist())
    elif not config.drop_rate or config.target.name == "model_guidance" or not test.info.fields:
        gammas = (1.0,)  # without ∅, guided already, or without anything to be guided by

    def draw(params: PyTree, step: int) -> np.ndarray | None:
        drawn = []
        run = sampling.Run(test.info, network, params, step, config.drop_rate > 0, config.path, target.gammas)
        for gamma in gammas:
            s = sampling.sample(run, c, num=num, gamma=gamma, method=method, seed=config.seed, batch_size=num)
            drawn.append(s.x)
        if not processes.is_main_process():
            return None
        labels = [f"γ = {g:g}" for g in gammas]
        try:
            (workdir / "previews").mkdir(exist_ok=True)
            return save_figure(workdir / "previews" / f"{step:08d}.png", np.stack(drawn)[None], [""], labels)
        except Exception as error:  # of this process alone: the others have drawn as well
            raise UserError(f"{type(error).__name__}: {error}") from error

    return draw


def _keep_null(config: build.Config, info: DataInfo, network: Network, state: TrainState, workdir: Path) -> None:
    """Looks once, with all processes, whether ∅ was learned: sample.py warns of one that was not, and need not look."""
    step, taught = int(state.step), build.target(config).gammas
    run = sampling.Run(info, network, state.ema, step, config.drop_rate > 0, config.path, taught)
    if sampling.guided_by_null(run):
        null = sampling.check_null(run, config.seed)
        if processes.is_main_process():
            sampling.keep_null(workdir, step, null)


if __name__ == "__main__":
    run_script(main, build.settings_help())
