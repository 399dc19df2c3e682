"""The tables that a terminal and the report show alike, each from what one stage left in the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmnas.pareto import Constraints, Evaluation, why_empty
from llmnas.pipeline.results import correlated, decided, laddered, retrained, search_facts
from llmnas.pipeline.retrain import verdict
from llmnas.report.findings import Table
from llmnas.runs import RunFolder

_FRONT_COLUMNS = ("architecture", "val loss", "perplexity", "parameters", "MFLOPs", "hidden", "layers")
_SHOWN = {"val_loss", "perplexity", "params", "flops_per_token"}


def search_tables(
    run: RunFolder,
    front: Sequence[Evaluation],
    evaluations: Sequence[Evaluation],
    asked: Iterable[str],
    constraints: Constraints,
) -> list[Table]:
    """The front of all evaluations, and which of its members to build; `asked` are the metrics that were named."""
    facts = search_facts(run)
    empty = why_empty(evaluations, constraints)
    more = (f" {empty}" if empty else failures(evaluations)) + few_windows(facts) + speed(facts)
    found = [front_table(front, len(evaluations), asked, facts.get("provenance", {}), more)]
    if run.decision.exists():
        found.append(decision_table(decided(run)))
    return found


def failures(evaluations: Sequence[Evaluation]) -> str:
    """How many evaluations failed, and the most frequent reason, as a sentence; empty where none did."""
    reasons = Counter(e.failure for e in evaluations if e.failure is not None and e.dropped_after is None)
    if not reasons:
        return ""
    reason, count = reasons.most_common(1)[0]
    return f" {reasons.total()} of them failed, {count} because {reason}."


def few_windows(facts: Mapping[str, Any]) -> str:
    """That the validation text has fewer windows than the default of `search.windows`, as a sentence; else empty."""
    if not facts.get("windows_missing"):
        return ""
    return f" The loss is that of all {facts['windows']} windows of the validation text; more text makes it surer."


def speed(facts: Mapping[str, Any]) -> str:
    """How fast the search was, as a sentence; empty where that was not noted."""
    if "candidates_per_hour" not in facts:
        return ""
    halved = (
        f" Successive halving dropped {facts['dropped']}: {facts['windows_share']:.0%} of all windows were run."
        if "dropped" in facts
        else ""
    )
    return halved + (
        f" {facts['candidates_per_hour']:,.0f} candidates an hour on {facts['processes']} process(es); "
        f"between evaluations, where the strategy thinks: {facts['strategy_share']:.1%} of the time."
    )


def front_table(
    front: Sequence[Evaluation], evaluated: int, asked: Iterable[str], provenance: Mapping[str, str], facts: str = ""
) -> Table:
    """The Pareto front, best loss first; every metric that was asked for has a column."""
    more = [name for name in dict.fromkeys(asked) if name not in _SHOWN]
    rows = []
    for e in sorted(front, key=lambda e: e.metrics["val_loss"]):
        m = e.metrics
        error = f" ± {m['val_loss_error']:.4f}" if m.get("val_loss_error") else ""
        rows.append((
            e.arch.id, f"{m['val_loss']:.4f}{error}", f"{m['perplexity']:.2f}", f"{int(m['params']):,}",
            f"{m['flops_per_token'] / 1e6:.2f}", str(e.arch.hidden_size), str(e.arch.depth),
            *(f"{m[name]:.4g}" for name in more),
        ))  # fmt: skip
    note = f"{evaluated} architectures evaluated with the supernet's weights; ± is one standard error."
    note += facts + "".join(f" {name}: {text}." for name, text in provenance.items())
    return Table("Pareto front", (*_FRONT_COLUMNS, *more), rows, note)


def decision_table(decision: Mapping[str, Any]) -> Table:
    """What the race between the best candidates showed."""
    rows = [(sentence,) for sentence in decision["statements"]] or [("there was one candidate",)]
    ends = {
        "decided": "no other contender was left",
        "equal": "those left do not differ",
        "exhausted": f"those left could not be told apart, so the one of least {decision['price']} was taken",
    }
    note = (
        f"Paired differences on the same validation windows ({max(decision['windows'].values())} at most, "
        f"{sum(decision['windows'].values())} in all); together the intervals hold with {decision['confidence']:.0%} "
        f"confidence. Chosen: {decision['chosen']}; {ends[decision['reason']]}."
    )
    return Table("Which architecture to build", ("finding",), rows, note)


def comparison_table(result: Mapping[str, Any]) -> Table:
    """Stand-alone training of the found and the hand-designed networks; the loss of each text that has a name."""
    rows, every = [], [run for runs in result["runs"].values() for run in runs]
    texts = list(dict.fromkeys(name for run in every for name in run.get("val_loss_by_text", {})))
    for name, runs in result["runs"].items():
        losses = [r["val_loss"] for r in runs]
        mean = sum(losses) / len(losses)
        perplexity = sum(r["perplexity"] for r in runs) / len(runs)
        spread = f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else ""
        by_text = [
            f"{sum(r['val_loss_by_text'][text] for r in runs) / len(runs):.4f}" if "val_loss_by_text" in runs[0] else ""
            for text in texts
        ]
        cells = (f"{runs[0]['params']:,}", f"{mean:.4f}{spread}", f"{perplexity:.2f}", *by_text, str(len(runs)))
        rows.append((name, *cells))
    verdicts = "; ".join(f"{c.get('of', 'found')} against {c['against']}: {verdict(c)}" for c in result["comparisons"])
    columns = ("network", "parameters", "val loss (nats)", "perplexity", *texts, "seeds")
    note = f"Trained alone on the same tokens with paired seeds. 95 % interval of the difference: {verdicts}."
    return Table("Found against hand-designed", columns, rows, note)


def correlation_table(result: Mapping[str, Any]) -> Table:
    """Rank agreement with stand-alone training, and what the ranking costs who trains only its best."""
    near, regret = result.get("near_pairs", {}), result.get("regret", {})
    rows = []
    for name, a in result["agreement"].items():
        like = near.get(name)
        rows.append((
            name, f"{a['tau']:.3f}", f"[{a['low']:.3f}, {a['high']:.3f}]", f"{a['spearman']:.3f}",
            f"{like['value']:.3f} [{like['low']:.3f}, {like['high']:.3f}]" if like else "",
            *(f"{regret[name][k]['value']:.4f}" if k in regret.get(name, {}) else "" for k in ("1", "3", "5")),
        ))  # fmt: skip
    note = f"{len(result['params'])} networks, trained alone; 95 % bootstrap intervals."
    spent = result.get("cpu_seconds", {})
    parts = [f"{name} {spent[name]:,.0f}" for name in ("supernet", "search") if spent.get(name)]
    if spent and None not in spent["stand_alone"]:
        parts.append(f"the {len(spent['stand_alone'])} stand-alone trainings {sum(spent['stand_alone']):,.0f}")
    note += f" CPU seconds: {', '.join(parts)}." if parts else ""
    if near:
        pairs = next(iter(near.values()))
        note += f" Like size: the {pairs['pairs']} pairs whose parameters differ by at most {pairs['width']:.0%}."
    for name, bands in result.get("bands", {}).items():
        each = ", ".join(
            f"{b['low']:,.0f}-{b['high']:,.0f}: {b['tau']['value']:.2f} "
            f"[{b['tau']['low']:.2f}, {b['tau']['high']:.2f}] of {b['networks']}"
            for b in bands
        )
        note += f" Tau of {name} by parameters: {each}." if each else ""
    note += _conflict_note(result.get("conflicts"))
    columns = (
        "score", "tau", "interval", "rho", "tau, like size", "regret of top 1 (nats)", "of top 3", "of top 5"
    )  # fmt: skip
    return Table("Does the supernet rank as stand-alone training does?", columns, rows, note)


def _conflict_note(conflicts: Mapping[str, Any] | None) -> str:
    """How sub-networks' gradients stand to each other, where that was measured."""
    if not conflicts:
        return ""
    pairs = conflicts["pairs"]
    cosines = [pair["cosine"] for pair in pairs]
    opposed = sum(pair["opposed"] for pair in pairs) / len(pairs)
    return (
        f" Gradients of {len(pairs)} pairs of networks on the same {conflicts['windows']} training sequences, over the "
        f"weights that both use: cosine {sum(cosines) / len(cosines):.2f} ({min(cosines):.2f} to {max(cosines):.2f}), "
        f"{sum(cosine < 0 for cosine in cosines)} of them conflict (cosine below 0), signs oppose at {opposed:.0%} of "
        "the weights."
    )


def ladder_table(result: Mapping[str, Any]) -> Table:
    """A row a depth, the deepest first."""
    rows = []
    for rung in reversed(result["rungs"]):
        mean = sum(rung["alone"]) / len(rung["alone"]) if rung["alone"] else None
        rows.append((
            str(rung["depth"]), " ".join(map(str, rung["kept"])), f"{rung['params']:,}", f"{rung['loss']:.4f}",
            f"{rung['first_layers']:.4f}", f"{rung['even_layers']:.4f}",
            "" if mean is None else f"{mean:.4f}", "" if mean is None else f"{rung['loss'] / mean - 1:+.1%}",
        ))  # fmt: skip
    every = all(rung["exhaustive"] for rung in result["rungs"])
    how = "every subset was measured" if every else "subsets were searched by a beam and exchanges"
    note = (
        f"Layers of the largest network, {how}; chosen on one half of the windows, losses in nats on the other "
        f"({result['windows']} windows)."
    )
    if result["seeds"]:
        note += f" Alone: trained by itself on equal tokens, mean of {result['seeds']} seed(s)."
    columns = (
        "depth", "layers kept", "parameters", "loss", "last layers dropped", "evenly spaced", "alone", "over alone"
    )  # fmt: skip
    return Table("Depth ladder", columns, rows, note)


def stage_tables(run: RunFolder) -> list[Table]:
    """The tables of the later stages that have run."""
    found = []
    if run.result("retrain").exists():
        found.append(comparison_table(retrained(run)))
    if run.result("correlate").exists():
        found.append(correlation_table(correlated(run)))
    if run.result("ladder").exists():
        found.append(ladder_table(laddered(run)))
    return found
