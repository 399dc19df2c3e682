"""The elastic checkpoint of a run, and text from it within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llmnas.archive import read_archive
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.export import Card
from llmnas.export.elastic import ElasticReport, export_elastic
from llmnas.export.generate import generate, load_model, read_prompt
from llmnas.export.subnetworks import Subnetwork, check_limits
from llmnas.pareto import Direction, front
from llmnas.pipeline.context import Context
from llmnas.pipeline.exported import ELASTIC
from llmnas.rng import torch_seed
from llmnas.serve import adaptive


def export(context: Context, *, force: bool = False, split_special: bool = False) -> ElasticReport:
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
    windows, bytes_per_token = context.loss_windows()
    measure = Evaluator(
        supernet, windows, config.search.sample, bytes_per_token, config.budget.workload, eos_id=context.document_end
    )
    table = [Subnetwork(arch, dict(metrics)) for arch, metrics in zip(found, measure(found), strict=True)]
    report = export_elastic(
        supernet, table, run.export(ELASTIC), tokenizer_path=run.tokenizer, force=force,
        split_special=split_special,
        eos_id=context.tokens("train").info.eos_id,
        context=config.budget.workload.tokens(supernet.base),
        card=Card(
            name=f"{config.name}, elastic", metrics={}, seed=config.seed, trained_tokens=0,
            data=f"{config.data.source}, {config.data.validation:.0%} of the documents held out",
        ),
    )  # fmt: skip
    run.record(ELASTIC, folder=str(report.folder.relative_to(run.path)), subnetworks=len(report.subnetworks))
    return report


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


def go_on_within(checkpoint: Path, asked: Asked, limits: Mapping[str, float], say: Callable[[str], None]) -> str:
    """The prompt and what the best sub-network within the limits adds to it; `say` gets what was picked.

    With a latency limit every sub-network is timed on this device first, at the length of this text.

    Raises:
        UserError: limits that no sub-network keeps.
    """
    model = load_model(checkpoint)
    picked = pick_within(model, limits, say)
    added = generate(
        checkpoint, asked.prompt, tokens=asked.tokens, temperature=asked.temperature,
        seed=torch_seed(asked.seed, "generate"), model=model.sharing(picked.arch),
    )  # fmt: skip
    return asked.prompt + added


def go_on_adapting(checkpoint: Path, asked: Asked, limits: Mapping[str, float], say: Callable[[str], None]) -> str:
    """The prompt and what is added to it at `limits["latency_ms"]` a token, by sub-networks that change with the load.

    `say` gets where it began, and at the end what the tokens took.

    Raises:
        UserError: as `go_on_within`, or no latency to keep.
    """
    if "latency_ms" not in limits:
        raise UserError("--adapt: keeps a latency; give --latency-ms too")
    model = load_model(checkpoint)
    longest = int(model.config.max_position_embeddings)
    tokenizer, ids = read_prompt(checkpoint, asked.prompt, longest)
    pick_within(model, limits, say)
    ms = model.config.latency_tables[-1]["ms"]
    rungs = adaptive.ladder(model.subnetworks, ms, limits)
    controller = adaptive.Controller([ms[one.id] for one in rungs], limits["latency_ms"])
    text, trace = adaptive.generate(
        model, ids, [one.arch for one in rungs], controller, tokens=min(asked.tokens, longest - ids.shape[1]),
        next_token=adaptive.draw(asked.temperature, torch_seed(asked.seed, "generate")),
    )  # fmt: skip
    say(_took(trace, rungs))
    return asked.prompt + str(tokenizer.decode(text[0, ids.shape[1] :], skip_special_tokens=True))


def _took(trace: adaptive.Trace, rungs: Sequence[Subnetwork]) -> str:
    """One line: the median time of a token, changes, and tokens by sub-network, fastest first."""
    shares = ", ".join(f"{one.id} {trace.rungs.count(i)}" for i, one in enumerate(rungs) if i in trace.rungs)
    return (
        f"{len(trace.ms)} tokens, median {median(trace.ms):.3g} ms, {trace.changes} changes, text read again "
        f"{len(trace.read_again)} times; tokens by sub-network, fastest first: {shares}"
    )


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
