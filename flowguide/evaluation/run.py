"""Runs a sweep: draws samples in chunks, keeps what is seen in each, and measures each setting when all are there."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import flowguide
from flowguide import processes, sampling, storage
from flowguide.build import Splits
from flowguide.condition import Condition
from flowguide.errors import UserError, one_line
from flowguide.evaluation import judging, kept
from flowguide.evaluation.readers import FeatureNetwork, Features, Reader, from_arrays, joined, named, reader, to_arrays
from flowguide.evaluation.shown import shown
from flowguide.evaluation.statistics import LEAST, NEIGHBOURS, Metrics, Real, held_out, measure, real_statistics
from flowguide.evaluation.sweep import (
    Setting,
    check_setting,
    conditions,
    describe,
    negative_conditions,
    parameters_hash,
)
from flowguide.hashes import json_hash
from flowguide.kinds import as_json
from flowguide.sampling.config import DEFAULT
from flowguide.schema import Images
from flowguide.workdir import prepare_folder

CHUNK = 500  # samples whose features are kept in one file
CHUNKS = "chunks"  # their folder
NUM_REAL = 50_000
JSON_FILE = "evaluation.json"


class Evaluation(NamedTuple):
    """What was measured; JSON-serializable.

    Attributes:
      about: what holds for all rows.
      held_out: metrics of real examples that were held out, as if they were samples.
      rows: for each setting what ``describe`` says of it, its cost, and its metrics; over several seeds these are
        means, with their standard deviation from seed to seed as "spread".
    """

    about: dict[str, Any]
    held_out: dict[str, Any]
    rows: list[dict[str, Any]]


class Chunk(NamedTuple):
    """Some samples of one setting, that of row ``row``, and the file for what is seen in them."""

    row: int
    setting: Setting
    seed: int
    first: int
    count: int
    file: Path
    origin: dict[str, Any]


def evaluate(
    settings: Sequence[Setting],
    data: Splits,
    folder: str | Path,
    *,
    num: int = 2000,
    seeds: Sequence[int] = (0,),
    features: Features | FeatureNetwork | None = None,
    num_real: int = NUM_REAL,
    batch_size: int = 100,
    progress: bool = False,
) -> Evaluation | None:
    """Draws samples of every setting and measures them.

    Sample i of a seed has the same noise and the same condition in every setting: that of a held-out example. What is
    seen in the samples is kept in the folder chunk by chunk, so a call that was interrupted resumes. Each file says
    what it was computed from, and is computed again if that has changed. Of several processes each draws its share of
    the chunks, and the main process measures.

    Args:
      settings: of ``settings``, or made by hand.
      data: training data, which samples are compared with, and held-out data, from which their conditions come.
      folder: for what is kept; all processes must see it.
      num: samples of each setting and seed.
      seeds: of noise and conditions.
      features: a function of images (or other examples, as ``sample`` returns them) that returns features ``(n, F)``,
        or a pair of these and class probabilities ``(n, K)``; or a ``FeatureNetwork``, which says more of itself. By
        default those of a judge that is trained on the class labels of the training data; vectors are their own.
      num_real: at most so many training examples give the moments of the Fréchet distance. The first 10,000 of them
        serve the other metrics.
      batch_size: samples at a time, over all devices.
      progress: show a progress bar with the time that is left.

    Returns:
      what was measured; None in processes other than the main one.

    Raises:
      UserError: for settings, data or features that do not fit together, before any sample is drawn.
    """
    folder, network = storage.path(folder), named(features)
    check(settings, data, num=num, num_real=num_real, batch_size=batch_size, seeds=seeds, network=network)
    seen_as = shown(data, settings[0].model)
    main, say = processes.is_main_process(), _say if processes.is_main_process() else lambda text: None
    if main:
        prepare_folder(folder)
    read = _reader(seen_as, folder, network, say)
    models = {id(model): model for s in settings for model in (s.model, s.weak) if model is not None}
    hashes = {key: parameters_hash(model) for key, model in models.items()}
    chunks = _chunks(settings, seeds, num, data, folder, read, hashes)
    own = _pending(chunks[jax.process_index() :: jax.process_count()], folder, say)

    real_count, held_count = min(num_real, data.train.size), min(NEIGHBOURS, data.test.size)
    total = sum(chunk.count for chunk in own) + main * (real_count + held_count)
    with tqdm(total=total, disable=not (progress and main), unit="example", dynamic_ncols=True) as bar:
        for chunk in own:
            bar.set_description(f"{chunk.setting.config.guidance}, γ = {chunk.setting.gamma:g}")
            _draw(chunk, data, read, batch_size)
            bar.update(chunk.count)
        processes.wait("all samples are drawn")
        if not main:
            for _ in settings:  # one by one, because no process waits for another for long
                processes.wait("a setting is measured")
            return None
        bar.set_description("real examples")
        real = real_statistics(seen_as.train, num_real, read, folder, say, bar.update)
        seen = held_out(seen_as.test, read, folder, say, bar.update)
    vectors = read.name == "vectors"
    rows = []
    for i, setting in enumerate(tqdm(settings, "measuring", disable=not progress, unit="setting", dynamic_ncols=True)):
        found = _row([chunk for chunk in chunks if chunk.row == i], data, real, vectors)
        rows.append({**describe(setting), "parameters": hashes[id(setting.model)], **found})
        processes.wait("a setting is measured")
    beside = {"num_samples": held_count, "metrics": _plain(measure(real, seen, vectors))}
    about = {
        "data": judging.identity(data.train),
        "features": read.name,
        "feature_network": network.origin if network else None,
        "resize": network.origin.get("resize") if network and isinstance(network.origin, dict) else None,
        "num_real": real_count,
        "num_real_neighbours": len(real.near.features),
        "num_samples": num,
        "seeds": list(seeds),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"flowguide": flowguide.__version__, "jax": jax.__version__},
    }
    return Evaluation(about, beside, rows)


def save(found: Evaluation, folder: Path) -> Path:
    """Writes ``evaluation.json``, in which every row also has what holds for all of them; returns its path.

    Raises:
      OSError: if it cannot be written.
    """
    same = {name: v for name, v in found.about.items() if name not in ("devices", "versions")}
    content = {**found.about, "held_out": found.held_out, "rows": [{**same, **row} for row in found.rows]}
    storage.replace_text(folder / JSON_FILE, as_json(content))
    return folder / JSON_FILE


def check(
    settings: Sequence[Setting],
    data: Splits,
    *,
    num: int,
    num_real: int = NUM_REAL,
    batch_size: int = 100,
    seeds: Sequence[int] = (0,),
    network: FeatureNetwork | None = None,
) -> None:
    """Raises ``UserError`` for whatever can be known to fail before anything is computed.

    The arguments are those of ``evaluate``. The models need no parameters.
    """
    info = data.train.info
    if not settings or not seeds or batch_size < 1:
        raise UserError(f"expected settings, seeds and a batch_size from 1; got {len(settings)}, {seeds}, {batch_size}")
    sizes = {"num": num, "num_real": num_real, "training examples": data.train.size, "held-out": data.test.size}
    for name, size in sizes.items():
        if size < LEAST:
            raise UserError(f"an evaluation needs at least {LEAST} of each; got {name} = {size}: give more")
    for model in {id(s.model): s.model for s in settings}.values():
        if model.info != info:
            raise UserError(
                f"the model learned from {model.info.name}, {model.info.shape}, and the data are {info.name}, "
                f"{info.shape}: give the data of its run; those of fit(arrays) are in no file, so call "
                "flowguide.evaluation.evaluate with them"
            )
    data = shown(data, settings[0].model)
    info = data.train.info
    for setting in settings:
        check_setting(setting, conditions(data.test, 0, 0, 1))
        negative_conditions(setting, data.test, seeds[0], 0, 1)
    if network is not None:
        try:
            reader(info.examples, None, None, network).read(data.train.read(np.arange(2)).x, {})
        except (ValueError, TypeError) as error:
            raise UserError(f"the features {network.name} do not take these examples: {one_line(error)}") from error
    elif isinstance(info.examples, Images) and not judging.classes_in(data.train):
        raise UserError(
            f"{info.name} has no class labels from which a judge of its images could learn: give other features, "
            "--features=inception:FILE"
        )


def _reader(data: Splits, folder: Path, network: FeatureNetwork | None, say: Callable[[str], None]) -> Reader:
    """Returns what reads examples; trains the judge if the folder does not keep it."""
    judge, origin = None, judging.origin(data.train)
    if judging.classes_in(data.train):
        judge, reason = judging.find(folder, data.train)
        if judge is None and processes.is_main_process():
            because = f"{folder / judging.FILE}: {reason}; " if reason else ""
            say(f"{because}a judge of {', '.join(judging.classes_in(data.train))} learns from the training data")
            judge = judging.train(data.train)
            judging.write(folder, judge, origin)
        processes.wait("the judge has learned")
        judge = judge or judging.find(folder, data.train)[0]
    found = storage.exists(folder) and (judge is not None or not judging.classes_in(data.train))
    if not processes.all_true(found):
        raise UserError(f"not all processes find {folder}: give a folder that their machines share")
    return reader(data.train.info.examples, judge, origin, network)


def _chunks(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    num: int,
    data: Splits,
    folder: Path,
    read: Reader,
    hashes: dict[int, int],
) -> list[Chunk]:
    found = []
    for row, setting in enumerate(settings):
        config = {name: v for name, v in setting.config._asdict().items() if v != getattr(DEFAULT, name)}
        origin = {
            "train_step": setting.model.step,
            "parameters": hashes[id(setting.model)],
            "weak parameters": None if setting.weak is None else hashes[id(setting.weak)],
            "gamma": setting.gamma,
            "config": config,
            "held-out data": judging.identity(data.test),
            **read.origin,
        }
        if setting.negatives:
            origin |= {"negatives": list(setting.negatives), "gamma_negative": setting.gamma_negative}
        away = [list(setting.negatives), setting.gamma_negative] if setting.negatives else []
        number = json_hash([config, setting.gamma, setting.weights, read.name, *away])
        name = f"{setting.config.guidance}-gamma-{setting.gamma:g}-{number:08x}"
        for seed in seeds:
            for first in range(0, num, CHUNK):
                file = folder / CHUNKS / name / f"seed-{seed}" / f"{first:08d}.npz"
                own = {**origin, "seed": seed, "first": first}
                found.append(Chunk(row, setting, seed, first, min(CHUNK, num - first), file, own))
    return found


def _pending(chunks: Sequence[Chunk], folder: Path, say: Callable[[str], None]) -> list[Chunk]:
    """Returns the chunks that are still to be drawn, and says which files are of something else."""
    pending, reasons = [], []
    for chunk in chunks:
        length, reason = kept.count(chunk.file, chunk.origin, "evaluations")
        if length < chunk.count:
            pending.append(chunk)
            reasons += [reason] if reason else []
    if reasons:
        say(f"{len(reasons)} files in {folder / CHUNKS} are of something else ({reasons[0]}): drawn again")
    return pending


def _draw(chunk: Chunk, data: Splits, read: Reader, batch_size: int) -> None:
    """Draws the samples of a chunk on the devices of this process, and keeps what is seen in them."""
    s, c, started = chunk.setting, conditions(data.test, chunk.seed, chunk.first, chunk.count), time.perf_counter()
    drawn = sampling.sample(
        s.model,
        c,
        num=chunk.count,
        gamma=s.gamma,
        negative=_negatives(chunk, data),
        gamma_negative=s.gamma_negative,
        weak=s.weak,
        config=s.config,
        seed=chunk.seed,
        first=chunk.first,
        batch_size=batch_size,
        devices=jax.local_devices(),
    )
    cost = {"evaluations": drawn.evaluations, "seconds": np.array(time.perf_counter() - started)}
    storage.make_folder(chunk.file.parent, parents=True)
    kept.write(chunk.file, chunk.origin, {**to_arrays(read.read(drawn.x, c.value)), **cost})


def _negatives(chunk: Chunk, data: Splits) -> tuple[Condition, ...]:
    return negative_conditions(chunk.setting, data.test, chunk.seed, chunk.first, chunk.count)


def _row(chunks: Sequence[Chunk], data: Splits, real: Real, vectors: bool) -> dict[str, Any]:
    """Returns the cost and the metrics of a setting, from its chunks."""
    each, evaluations, rates = [], [], []
    for seed in dict.fromkeys(chunk.seed for chunk in chunks):
        parts, avoided = [], []
        for chunk in chunks:
            if chunk.seed == seed:
                arrays = _kept(chunk)
                parts.append(from_arrays(arrays, chunk.count))
                avoided.append(_negatives(chunk, data))
                evaluations.append(arrays["evaluations"][: chunk.count])
                rates.append(float(arrays["seconds"]) / len(arrays["evaluations"]))
        negatives = jax.tree.map(lambda *leaves: np.concatenate(leaves), *avoided)
        each.append(measure(real, joined(parts), vectors, negatives))
    cost = np.concatenate(evaluations)
    mean, spread = _mean_and_spread(each)
    return {
        "evaluations": float(cost.mean()),
        # By the median chunk, as the first also compiles.
        "seconds": round(float(np.median(rates)) * len(cost), 3),
        "metrics": _plain(mean),
        "spread": None if spread is None else _plain(spread),
        "each_seed": [_plain(metrics) for metrics in each] if spread else None,
    }


def _mean_and_spread(each: Sequence[Metrics]) -> tuple[Metrics, Metrics | None]:
    """Returns the mean over seeds, of whose shares the standard errors are smaller, and the standard deviation."""
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *each)
    if len(each) == 1:
        return mean, None
    fewer = 1 / math.sqrt(len(each))
    errors = {name: fewer * error for name, error in mean.adherence_error.items()}
    mean = mean._replace(joint_adherence_error=fewer * mean.joint_adherence_error, adherence_error=errors)
    spread = jax.tree.map(lambda *values: float(np.std(values, ddof=1)), *each)
    return mean, spread._replace(joint_adherence_error=math.nan, adherence_error={})


def _kept(chunk: Chunk) -> dict[str, np.ndarray]:
    arrays, reason = kept.read(chunk.file, chunk.origin)
    if arrays is None:
        raise UserError(
            f"{chunk.file} is not there any more{f' ({reason})' if reason else ''}: give a folder that the machines of "
            "all processes share and in which no other evaluation writes, and run again"
        )
    return arrays


def _plain(metrics: Metrics) -> dict[str, Any]:
    """Returns the metrics that apply, as JSON."""
    return {name: v for name, v in metrics._asdict().items() if v != {} and not (isinstance(v, float) and np.isnan(v))}


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
