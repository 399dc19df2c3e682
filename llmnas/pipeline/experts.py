"""What the routers of a trained supernet learnt, the architectures that follow from it, and what those are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from llmnas.archive import Archive
from llmnas.data import Sequences
from llmnas.errors import UserError
from llmnas.evaluate.evaluator import Evaluator
from llmnas.evaluate.providers import with_providers
from llmnas.files import write_json
from llmnas.pareto import all_needed
from llmnas.pipeline.context import Context
from llmnas.pipeline.metrics import providers
from llmnas.pipeline.search import write_front
from llmnas.pipeline.stores import measured_how
from llmnas.report.findings import Table
from llmnas.rng import generator
from llmnas.search.experts import LEVELS, LayerFindings, needed, propose
from llmnas.space import Architecture
from llmnas.supernet import Transformer
from llmnas.supernet.importance import importance, reorder_experts
from llmnas.supernet.routing import RouterStudy, study_routers
from llmnas.train.engine import start_processes
from llmnas.train.threads import set_threads

_PARENTS = 3  # members of the front that proposals start from, besides the largest network
_BATCHES, _BATCH = 4, 8  # windows of training text that routers are watched on
_SHUFFLES = 3


def analyse_experts(context: Context) -> dict[str, Any]:
    """Write `experts/result.json`, and add what is proposed to the archive and its front.

    Raises:
        UserError: the space has no experts, or there is no search yet, or it measured in another way.
    """
    config, run = context.config, context.run
    if max(config.space.experts.choices) == 1:
        raise UserError("space.experts is [1]: there is no router to analyse; give layers experts to choose from")
    set_threads(config.train, start_processes(), run.checkpoints)
    run.unseal_evaluations()
    archive = Archive.load(run.require(run.evaluations, "search"), measured_how(config))
    evaluator = context.evaluator()
    model, batches = evaluator.model, _text(context)
    measure = with_providers(evaluator, providers(config, run, context.own_metrics))
    parents = _parents(context, archive)
    largest = next(iter(parents))
    studies = {arch: study_routers(model, batches, arch) for arch in parents}
    proposals = []
    for parent, label in parents.items():
        findings = {i: _findings(study) for i, study in studies[parent].items()}
        before = evaluator.measure(parent)
        for level, thresholds in LEVELS.items():
            arch = propose(config.space, parent, findings, thresholds)
            if arch == parent or not config.budget.admits(config.space.base, arch):
                continue
            stored = archive.get(arch)
            metrics = stored.metrics if stored else dict(measure([arch])[0])
            if stored is None:
                archive.append([arch], [all_needed(metrics)], proposed=True)
            proposals.append({
                "parent": label, "level": level, "id": arch.id, "architecture": arch.to_dict(), "new": stored is None,
                "metrics": metrics, "parent_metrics": before, "shuffled": _shuffled(context, arch, evaluator),
            })  # fmt: skip
    best = {evaluation.arch.id for evaluation in archive.front()}
    result = {
        "layers": {str(i): _plain(study) for i, study in studies[largest].items()},
        "windows": _BATCHES * _BATCH,
        "trained whole": config.train.sampler.largest == "space" or config.budget.admits(config.space.base, largest),
        "levels": {name: level._asdict() for name, level in LEVELS.items()},
        "needed": {
            name: {str(i): needed(_findings(study), level) for i, study in studies[largest].items()}
            for name, level in LEVELS.items()
        },
        "proposals": [{**proposal, "front": proposal["id"] in best} for proposal in proposals],
        "halved": halved(context.supernet(), largest, batches, evaluator),
    }
    write_front(run, archive)
    archive.close()
    write_json(run.result("experts"), result, run.seal)
    run.record("experts", proposals=len(proposals))
    return result


def _text(context: Context) -> list[torch.Tensor]:
    """Windows of training text, [_BATCH, seq] each."""
    settings = context.config.train
    sequences = Sequences(context.tokens("train").tokens, settings.seq_len, context.config.seed)
    return [torch.from_numpy(sequences.batch(i * _BATCH, _BATCH)[:, :-1]) for i in range(_BATCHES)]


def _parents(context: Context, archive: Archive) -> dict[Architecture, str]:
    """The largest network, and the best of the front that have a router, with what to call them."""
    mixed = [e for e in archive.front() if any(spec.experts > 1 for _, spec in e.arch.kept)]
    mixed.sort(key=lambda e: e.metrics.get("val_loss", 0.0))
    return {context.config.space.largest(): "largest"} | {e.arch: e.arch.id for e in mixed[:_PARENTS]}


def _findings(study: RouterStudy) -> LayerFindings:
    return LayerFindings(study.contribution.tolist(), study.cosine.tolist(), study.mass.tolist())


def _plain(study: RouterStudy) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(study).items()
    }  # fmt: skip


def _shuffled(context: Context, arch: Architecture, evaluator: Evaluator) -> list[float]:
    """Losses of the same numbers of experts at other layers: what is left if the routers know nothing of where."""
    rng, found = generator(context.config.seed, "shuffled experts"), []
    pairs = [(spec.experts, spec.top_k) for _, spec in arch.kept]
    if len(set(pairs)) == 1 or not context.config.space.experts.per_layer or not context.config.space.top_k.per_layer:
        return []
    for _ in range(_SHUFFLES):
        order = rng.permutation(len(pairs))
        kept = {
            i: replace(spec, experts=pairs[order[n]][0], top_k=pairs[order[n]][1])
            for n, (i, spec) in enumerate(arch.kept)
        }
        other = Architecture(arch.hidden_size, tuple(kept.get(i) for i in range(len(arch.layers))))
        found.append(evaluator.measure(other)["val_loss"])
    return found


def halved(
    model: Transformer, arch: Architecture, batches: Sequence[torch.Tensor], evaluator: Evaluator
) -> dict[str, float]:
    """Losses with the leading half of every layer's experts, as they stand and sorted by importance.

    Changes `model`, which must not be the evaluator's own.
    """
    layers = tuple(s and replace(s, experts=max(s.top_k, s.experts // 2)) for s in arch.layers)
    half = Architecture(arch.hidden_size, layers)
    scores = importance(model, batches, arch)
    reorder_experts(model, scores)
    windows = evaluator.windows
    return {
        "whole": float(evaluator.losses(arch, windows).mean()),
        "as they stand": float(evaluator.losses(half, windows).mean()),
        "sorted by importance": float(evaluator.on(model).losses(half, windows).mean()),
    }


_ROUTERS = ("layer", "experts", "load", "entropy (nats)", "cosine", "CKA", "weight of the first", "needed")
_PROPOSALS = (
    "proposal", "from", "level", "experts/k", "val loss", "change", "parameters", "active", "shuffled", "on the front"
)  # fmt: skip


def experts_tables(result: Mapping[str, Any]) -> list[Table]:
    """The routers of the largest network, and the proposals."""
    return [_routers(result), _proposals(result)]


def _routers(result: Mapping[str, Any]) -> Table:
    rows = []
    for i, layer in result["layers"].items():
        load = layer["load"]
        pairs = [(a, b) for a in range(len(load)) for b in range(a)]
        rows.append((
            i, str(len(load)), f"{min(load):.3f} to {max(load):.3f}", f"{layer['entropy']:.3f}",
            *(f"{max(layer[kind][a][b] for a, b in pairs):.2f}" for kind in ("cosine", "cka")),
            f"{layer['mass'][0]:.2f}", ", ".join(f"{name} {len(found[i])}" for name, found in result["needed"].items()),
        ))  # fmt: skip
    half = result["halved"]
    note = (
        f"On {result['windows']} windows of training text; likeness is that of the two most alike experts on the same "
        f"tokens. Loss of the whole: {half['whole']:.4f}; with the leading half of the experts "
        f"{half['as they stand']:.4f}, with the half that matters most {half['sorted by importance']:.4f} nats."
    )
    if not result["trained whole"]:
        note += " Training ran this network in parts only: it is over the budget, and train.sampler.largest is budget."
    return Table("What the routers of the largest network learnt", _ROUTERS, rows, note)


def _proposals(result: Mapping[str, Any]) -> Table:
    rows = []
    for p in result["proposals"]:
        after, before = p["metrics"], p["parent_metrics"]
        rows.append((
            p["id"], p["parent"], p["level"], _experts(p["architecture"]),
            f"{after['val_loss']:.4f}", f"{after['val_loss'] - before['val_loss']:+.4f}",
            *(f"{after[name] / before[name] - 1:+.0%}" for name in ("params", "active_params")),
            f"{min(p['shuffled']):.4f} to {max(p['shuffled']):.4f}" if p["shuffled"] else "",
            "yes" if p["front"] else "no",
        ))  # fmt: skip
    note = (
        "Experts/k of every kept layer, 1: dense. Evaluated with the supernet's weights and added to the archive; "
        "shuffled: losses of the same numbers at other layers."
    )
    return Table("Proposed numbers of experts", _PROPOSALS, rows, note if rows else "The rule leaves all as it is.")


def _experts(architecture: Mapping[str, Any]) -> str:
    specs = [spec for _, spec in Architecture.from_dict(architecture).kept]
    return " ".join(f"{spec.experts}/{spec.top_k}" if spec.experts > 1 else "1" for spec in specs)
