"""A study on disk: the run folder, written as it goes, and read back."""

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..build import ModelConfig, build
from ..data.open import open_data
from ..data.stream import Stream
from ..errors import UserError
from ..files import json_ready, write_json_atomic
from ..train.checkpoint import load_model, save_model
from .arms import Arm
from .codec import differences, from_dict, to_dict
from .config import PairConfig
from .pair import PairResult, pair
from .report import write_report
from .trials import Event


def open_stream(config: PairConfig) -> Stream:
    """The stream that a config describes."""
    return open_data(
        config.stream.data,
        config.stream.tokenizer,
        data_root=config.stream.data_root,
        vocab_size=config.stream.vocab_size,
        pad_vocab_to=config.stream.pad_vocab_to,
        sequence_length=config.stream.sequence_length,
        batch_size=config.stream.batch_size,
        eval_tokens=config.stream.eval_tokens,
    )


def run_pair(
    config: PairConfig,
    *,
    out: Path | None = None,
    runs: Path = Path("runs"),
    stream: Stream | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_folder: Callable[[Path], None] | None = None,
) -> tuple[Path, PairResult]:
    """Runs a study and writes its folder.

    **Arguments:**

    - `config`: what to run.
    - `out`: the folder; None is `runs/<name>-<config hash>-<n>` with the first free n.
    - `runs`: where unnamed folders go.
    - `stream`: the config's stream where the caller has it already.
    - `on_event`: told of everything that happens; `on_folder`: told the folder before training.

    **Returns:** the folder and the result. The folder holds config.json, metrics.jsonl, result.json, report.md, curves
    as PNG and SVG, and `<arm>/seed-<n>/model.safetensors`.

    **Raises:** `UserError` before anything is written where config, data or folder do not fit.
    """
    stream = open_stream(config) if stream is None else stream
    arms = config.resolve(stream.vocab_size, stream.padding)
    for name, arm in arms.items():
        if arm.config.vocab_size < stream.vocab_size:
            raise UserError(f"arm {name} has a vocabulary of {arm.config.vocab_size}, the data {stream.vocab_size} ids")
    folder = run_folder(config, out, runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror}") from None
    write_json_atomic(folder / "config.json", to_dict(config))
    if on_folder:
        on_folder(folder)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:

        def tell(event: Event) -> None:
            if event.progress is not None:
                metrics.write(json.dumps(json_ready(_metric(event)), allow_nan=False) + "\n")
                metrics.flush()
            if event.kind == "run":
                _save_run(folder, arms[event.arm], event)
            if on_event:
                on_event(event)

        result = pair(
            {name: arm.config for name, arm in arms.items()},
            stream,
            seeds=config.seeds,
            steps=config.steps,
            learning_rates=config.learning_rates,
            optimizer=config.optimizer,
            margin=config.margin,
            confidence=config.confidence,
            pairing=config.pairing,
            compute_dtype=config.compute_dtype,
            loop=config.loop,
            remat=config.remat,
            seeds_at_once=config.seeds_at_once,
            evaluations=config.evaluations,
            sample_tokens=config.sample_tokens,
            notes={name: arm.match_note for name, arm in arms.items() if arm.match_note},
            on_event=tell,
        )
    _keep_best(folder, result)
    data = {
        **result.data,
        "name": config.name,
        "version": _version(),
        "config": to_dict(config),
        "replay": f"python experiments/pair.py --config {shlex.quote(str(folder / 'config.json'))}",
    }
    write_json_atomic(folder / "result.json", data)
    write_report(data, folder)
    return folder, PairResult(data)


def config_hash(config: PairConfig) -> str:
    """Eight hex digits of everything in the config."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_folder(config: PairConfig, out: Path | None, runs: Path) -> Path:
    """Where a run goes; `UserError` where `out` holds a finished run or another config."""
    if out is None:
        stem = f"{config.name}-{config_hash(config)}"
        n = 0
        while (runs / f"{stem}-{n}").exists():
            n += 1
        return runs / f"{stem}-{n}"
    if not out.exists():
        return out
    if not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if not (out / "config.json").exists():
        if any(out.iterdir()):
            raise UserError(f"--out {out} holds files that are no run: name a new or an empty folder")
        return out
    there = read_config(out / "config.json")
    changed = differences(there, config)
    if changed:
        shown = "; ".join(f"{field} {old} -> {new}" for field, old, new in changed)
        raise UserError(f"--out {out} holds a run of another config ({shown}): name another folder")
    if (out / "result.json").exists():
        raise UserError(f"--out {out} holds a finished run of this config: read its report.md, or name another folder")
    for label in config.labels():  # the same config, not finished: it starts again
        for leftover in (out / label).glob("seed-*"):
            shutil.rmtree(leftover)
    return out


def read_config(path: Path) -> PairConfig:
    """The config of a file that a run wrote; `UserError` where it cannot be one."""
    return from_dict(PairConfig, _read_json(path))


def load_run(path: str | Path, *, arm: str | None = None, seed: int | None = None) -> Any:
    """The trained model of a run.

    **Arguments:**

    - `path`: a run folder, or one model's folder in it (`<arm>/seed-<n>`).
    - `arm`, `seed`: which model of a run folder; None is the first arm, and seed 0.

    **Returns:** the `LanguageModel`.

    **Raises:** `UserError` where there is no such model, naming those there are.
    """
    folder = Path(path)
    if not (folder / "model.json").exists():
        there = sorted(p.parent.relative_to(folder).as_posix() for p in folder.glob("*/seed-*/model.json"))
        if not there:
            raise UserError(f"{folder} holds no run: no <arm>/seed-<n>/model.json in it")
        if arm is None:
            arm = read_config(folder / "config.json").labels()[0]
        wanted = f"{arm}/seed-{0 if seed is None else seed}"
        if wanted not in there:
            raise UserError(f"{folder} has no model {wanted}; there are: {', '.join(there)}")
        folder = folder / wanted
    config = from_dict(ModelConfig, _read_json(folder / "model.json"))
    order = jnp.zeros(config.vocab_size, jnp.int32)  # its values come from the file
    like = eqx.filter_eval_shape(lambda key: build(config, order=order, key=key), jax.random.key(0))
    return load_model(folder / "model.safetensors", like)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("eqx_slm")
    except PackageNotFoundError:
        return "unknown"


def _metric(event: Event) -> dict[str, Any]:
    assert event.progress is not None
    return {
        "arm": event.arm,
        "seed": event.seed,
        "learning_rate": event.learning_rate,
        **dataclasses.asdict(event.progress),
    }


def _rate_folder(folder: Path, arm: str, seed: int, rate: float) -> Path:
    return folder / arm / f"seed-{seed}-lr-{rate!r}"


def _save_run(folder: Path, arm: Arm, event: Event) -> None:
    at = _rate_folder(folder, event.arm, event.seed, event.learning_rate)
    save_model(at / "model.safetensors", event.model, metadata={"arm": event.arm, "seed": event.seed})
    write_json_atomic(at / "model.json", to_dict(arm.config))


def _keep_best(folder: Path, result: PairResult) -> None:
    """Of a sweep, the models at each arm's chosen rate stay, under the names `<arm>/seed-<n>`."""
    for name, entry in result.data["arms"].items():
        for run in entry["all_runs"] or entry["runs"]:
            at = _rate_folder(folder, name, run["seed"], run["learning_rate"])
            if run["learning_rate"] == entry["learning_rate"]:
                at.rename(folder / name / f"seed-{run['seed']}")
            else:
                shutil.rmtree(at)
