"""Self-speculative decoding: search the sub-network that drafts fastest for the whole one, then run it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmnas.errors import UserError
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config
from llmnas.files import write_json
from llmnas.pipeline.context import Context
from llmnas.report.findings import Table
from llmnas.search import search
from llmnas.serve.speculative import Drafting
from llmnas.space import Architecture
from llmnas.supernet import split_windows
from llmnas.train.engine import start_processes
from llmnas.train.threads import set_threads

_ROUNDS = 3  # plain and speculative generation in turn
_SHOWN = 8


def speculate(context: Context) -> dict[str, Any]:
    """Write `speculate/result.json`: the best drafts found and, for the best one, a measured run in transformers.

    Half of the prompts choose the draft, the other half measure it.

    Raises:
        UserError: the largest network has a recurrent layer, whose state cannot go back; or prompts that do not
            fit or are more than the text has.
    """
    config, run = context.config, context.run
    options = config.speculate
    set_threads(config.train, start_processes(), run.checkpoints)
    model = context.supernet()
    _check(context, model.envelope)
    choosing, measuring = (
        split_windows(torch.from_numpy(half))[0][:, : options.prompt_tokens]
        for half in context.halves("speculate.prompts")
    )
    drafting = Drafting(model, choosing, options.new_tokens, options.longest)

    def evaluate(archs: Sequence[Architecture]) -> list[Mapping[str, float]]:
        return [_judged(drafting, arch) for arch in archs]

    archive = search(
        config.space, evaluate, "evolution", {"speedup": "max"}, evaluations=options.evaluations, seed=config.seed,
        on_progress=lambda found: context.tracker.progress(
            "speculate", len(found), options.evaluations, f"{len(found)} drafts"
        ),
    )  # fmt: skip
    ranked = sorted(archive.evaluations, key=lambda e: -e.metrics.get("speedup", -np.inf))
    drafts: list[dict[str, Any]] = [
        {"id": e.arch.id, "architecture": e.arch.to_dict(), "depth": e.arch.depth, **e.metrics}
        for e in ranked[:_SHOWN]
        if "speedup" in e.metrics
    ]
    if not drafts:
        raise UserError("speculate: no sub-network without recurrent layers was found to draft")
    result = {
        "check_ms": drafting.check_ms,
        "drafts": drafts,
        "measured": measured(model, ranked[0].arch, int(drafts[0]["length"]), measuring, options.new_tokens),
    }
    write_json(run.result("speculate"), result, run.seal)
    run.record("speculate", drafts=len(archive))
    return result


def measured(model: Any, draft: Architecture, length: int, prompts: Tensor, new_tokens: int) -> dict[str, Any]:
    """Generate through transformers, plain and with the draft, in turn.

    Returns:
        `identical` texts; `acceptance` of proposals; passes of the whole network a token; `speedup` as the median
        ratio of processor times, which hold what transformers itself does around every pass.
    """
    full = LlmnasForCausalLM(own_config(model, None), model)
    assistant = full.sharing(draft)
    assistant.generation_config.num_assistant_tokens = length
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    passes = {"full": 0, "draft": 0}
    for name, network in (("full", full), ("draft", assistant)):
        network.register_forward_pre_hook(_counter(passes, name))
    ratios, identical, counted = [], True, {"full": 0, "draft": 0}
    for _ in range(_ROUNDS):
        spent = {}
        texts = {}
        for kind, options in (("plain", {}), ("drafted", {"assistant_model": assistant})):
            passes.update(full=0, draft=0)
            begin = time.process_time()
            texts[kind] = [_generate(full, row, new_tokens, options) for row in prompts]
            spent[kind] = time.process_time() - begin
        counted = dict(passes)
        identical &= all(torch.equal(a, b) for a, b in zip(texts["plain"], texts["drafted"], strict=True))
        ratios.append(spent["plain"] / spent["drafted"])
    tokens = len(prompts) * new_tokens
    return {
        "identical": bool(identical), "speedup": float(np.median(ratios)), "proposals": counted["draft"],
        "full_passes_a_token": counted["full"] / tokens,
        "acceptance": (tokens - counted["full"]) / max(1, counted["draft"]), "tokens": tokens,
    }  # fmt: skip


def _counter(passes: dict[str, int], name: str) -> Any:
    def count(*_: Any) -> None:
        passes[name] += 1

    return count


def _generate(full: LlmnasForCausalLM, prompt: Tensor, new_tokens: int, options: dict[str, Any]) -> Tensor:
    mask = torch.ones_like(prompt[None])
    found: Tensor = full.generate(
        prompt[None],
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        **options,
    )
    return found


def _judged(drafting: Drafting, arch: Architecture) -> dict[str, float]:
    """A recurrent draft cannot take proposals back: a failed evaluation."""
    if arch == drafting.full or any(spec.mixer == "mlgru" for _, spec in arch.kept):
        return {"speedup": float("nan")}
    found = drafting.plan(arch)
    return {"speedup": found.speedup, "acceptance": found.acceptance, "length": float(found.length)}


def _check(context: Context, full: Architecture) -> None:
    options, base = context.config.speculate, context.config.space.base
    recurrent = [i for i, spec in full.kept if spec.mixer == "mlgru"]
    if recurrent:
        raise UserError(
            f"speculate: layer {recurrent[0]} of the largest network is an MLGRU, whose state cannot go back after a "
            "wrong proposal"
        )
    if options.prompt_tokens + options.new_tokens > base.max_seq:
        raise UserError(
            f"speculate.prompt_tokens + speculate.new_tokens = {options.prompt_tokens + options.new_tokens} is longer "
            f"than space.base.max_seq = {base.max_seq}"
        )
    if options.prompt_tokens > context.config.train.seq_len:
        raise UserError(f"speculate.prompt_tokens: at most train.seq_len = {context.config.train.seq_len}")


def speculation_table(result: dict[str, Any]) -> Table:
    """The best drafts, and what the best one did."""
    rows = [
        (d["id"], str(d["depth"]), f"{d['length']:.0f}", f"{d['acceptance']:.0%}", f"{d['speedup']:.2f}")
        for d in result["drafts"]
    ]
    m = result["measured"]
    note = (
        f"Expected from passes timed alone. The first one in transformers on other prompts ({m['tokens']} tokens): "
        f"{'the same text as the whole network' if m['identical'] else 'ANOTHER text than the whole network'}, "
        f"{m['acceptance']:.0%} accepted, {m['full_passes_a_token']:.2f} passes of the whole network a token, "
        f"{m['speedup']:.2f} times as fast."
    )
    return Table(
        "Drafts for self-speculative decoding", ("draft", "layers", "proposals", "accepted", "speed-up"), rows, note
    )
