"""The elastic checkpoint of a run, and text from it within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.export import Card
from llmnas.export.config import ABOUT_FILE
from llmnas.export.elastic import ElasticReport, export_elastic
from llmnas.export.generate import generate, load_model
from llmnas.export.subnetworks import Subnetwork, check_limits
from llmnas.files import read_json
from llmnas.pareto import Direction, front, read_archive
from llmnas.pipeline.context import Context
from llmnas.rng import torch_seed
from llmnas.runs import RunFolder

_NAME = "elastic"


def export(context: Context, *, force: bool = False) -> ElasticReport:
    """Write all weights of the supernet and the Pareto front of the search (parameters always count as an objective).

    Losses in the table are those of the shared weights as they are stored, evaluated here.
    """
    config, run = context.config, context.run
    asked, constraints, evaluations = read_archive(run.require(run.evaluations, "search"))
    objectives: dict[str, Direction] = {"val_loss": "min", **asked, "params": "min"}
    found = [one.arch for one in front(evaluations, objectives, constraints)]
    if not found:
        raise UserError(f"{run.evaluations}: nothing that was evaluated meets search.constraints; search longer")
    supernet = context.supernet()
    windows, bytes_per_token = context.windows(config.search.windows)
    measure = Evaluator(supernet, windows, config.search.sample, bytes_per_token, config.budget.workload)
    table = [Subnetwork(arch, dict(metrics)) for arch, metrics in zip(found, measure(found), strict=True)]
    report = export_elastic(
        supernet, table, run.export(_NAME), tokenizer_path=run.tokenizer, force=force,
        eos_id=context.tokens("train").info.eos_id,
        context=config.budget.workload.tokens(supernet.base),
        card=Card(
            name=f"{config.name}, elastic", metrics={}, seed=config.seed, trained_tokens=0,
            data=f"{config.data.source}, {config.data.validation:.0%} of the documents held out",
        ),
    )  # fmt: skip
    run.record(_NAME, folder=str(report.folder.relative_to(run.path)), subnetworks=len(report.subnetworks))
    return report


def elastic_folder(folder: Path) -> Path:
    """The elastic checkpoint that a run folder holds, or the folder itself where it is one.

    Raises:
        UserError: neither.
    """
    own = not (folder / ABOUT_FILE).is_file()
    checkpoint = RunFolder(folder).export(_NAME) if own else folder
    if (checkpoint / ABOUT_FILE).is_file() and "elastic" in read_json(checkpoint / ABOUT_FILE)["export"]:
        return checkpoint
    if own:
        raise UserError(f"{folder}: no elastic checkpoint there; run `llmnas export CONFIG --elastic` first")
    raise UserError(f"{folder}: holds one network; a budget needs the folder of `llmnas export CONFIG --elastic`")


@dataclass(frozen=True)
class Asked:
    """What text is asked for.

    Attributes:
        prompt: text to go on from.
        tokens: to add at most.
        temperature: 0 takes the likeliest token.
        seed: of what is drawn.
    """

    prompt: str
    tokens: int
    temperature: float
    seed: int


def go_on_within(folder: Path, asked: Asked, limits: Mapping[str, float], say: Callable[[str], None]) -> str:
    """The prompt and what the best sub-network within the limits adds to it; `say` gets what was picked.

    With a latency limit every sub-network is timed on this device first, at the length of this text.

    Raises:
        UserError: no elastic checkpoint, or limits that no sub-network keeps.
    """
    checkpoint = elastic_folder(folder)
    model = load_model(checkpoint)
    picked = pick_within(model, limits, say)
    added = generate(
        checkpoint, asked.prompt, tokens=asked.tokens, temperature=asked.temperature,
        seed=torch_seed(asked.seed, "generate"), model=model.sharing(picked.arch),
    )  # fmt: skip
    return asked.prompt + added


def pick_within(model: Any, limits: Mapping[str, float], say: Callable[[str], None]) -> Subnetwork:
    """Measure where the limits ask for it, pick, and say so."""
    try:
        check_limits(limits)
        measured = model.measure_latency() if "latency_ms" in limits else None
        picked: Subnetwork = model.set_budget(**limits)
    except ValueError as error:
        raise UserError(str(error)) from None
    ms = f", {measured.ms[picked.id]:.3g} ms a token on this device" if measured else ""
    say(
        f"picked {picked.id}: {int(picked.metrics['params']):,} parameters, {picked.arch.depth} layers, "
        f"validation loss {picked.metrics['val_loss']:.4f}{ms}"
    )
    return picked
