"""A pretrained model and a budget become a config, and what `llmnas compress` shows at its end.

The rules (every one may be changed with `--set`):
- the largest network is the model; hidden size and FFN go down to half and a quarter of it in steps, KV heads and
  queries a group to half, and up to half of the layers between the first and the last may go. The head size stays;
- sizes are the same in every layer, so that the result is a stock checkpoint of exactly its size; `--per-layer`
  lets every layer choose its own KV heads and FFN, and then a stock checkpoint pads them with zeros;
- networks below nine tenths of `--max-params` take no part, where the space has any between (docs/compress.md);
- the supernet is trained for 100 steps on the text, with the frozen model as teacher of the logits, at a
  learning rate that falls with size: 1e-3 below 10 million parameters, 3e-4 below a billion, else 1e-4;
- the winner is healed alone for 500 steps, where the same text brings more, with logits and block outputs of the
  model as aims, below 10 million parameters at 3e-3 (all three measured: docs/compress.md).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmnas.archive import Archive
from llmnas.config import Config, make_config
from llmnas.cost import BudgetSampler, count_params
from llmnas.data import open_corpus, read_model_tokenizer
from llmnas.errors import UserError
from llmnas.evaluate.measure import measure_latency, this_device
from llmnas.pipeline.context import Context
from llmnas.pipeline.decide import chosen
from llmnas.pipeline.init import parse_count
from llmnas.pipeline.results import retrained, train_facts
from llmnas.pipeline.retrain import verdict
from llmnas.report.html import Table
from llmnas.rng import generator
from llmnas.supernet import Transformer, load_weights
from llmnas.train.warmstart import read_shape

_BASELINES = {
    "found_cut": "found, cut out of the model, healed",
    "last_layers": "last layers dropped, healed",
    "depth": "least important layers dropped, healed",
    "width": "all layers narrower, healed",
    "original": "the model, trained on as many tokens",
}
_RECIPES = ("found_cut", "last_layers", "depth", "width")
_LEAST_SHARE = 0.9
_CHECK_SECONDS = 2.0
_CONTEXT = 512


@dataclass(frozen=True)
class Request:
    """What the command line asks for; exactly one of the two budgets is given."""

    model: Path
    corpus: str
    max_params: int | None = None
    latency_ms: float | None = None
    per_layer: bool = False
    baselines: bool = False


def compress_values(request: Request) -> dict[str, Any]:
    """The config of a compression, as plain values.

    Raises:
        UserError: no such folder, a model that cannot be read, or not exactly one budget.
    """
    if (request.max_params is None) == (request.latency_ms is None):
        raise UserError("compress: give one budget, --max-params N or --latency-ms X")
    base, whole = read_shape(request.model)
    params = count_params(whole, base).total
    seq_len = min(128 if params < 10**7 else 256, base.max_seq)
    lr = 1e-3 if params < 10**7 else 3e-4 if params < 10**9 else 1e-4
    healing_lr = 3e-3 if params < 10**7 else lr
    teach = {"source": "original", "weight": "auto", "top_k": 64}
    values: dict[str, Any] = {
        "name": "compress-" + re.sub(r"[^A-Za-z0-9._-]", "-", request.model.resolve().name),
        "data": {"source": request.corpus, "tokenizer": str(request.model)},
        "space": space_values(request.model, per_layer=request.per_layer),
        "budget": {"workload": {"context": min(base.max_seq, _CONTEXT)}},
        "train": {
            "steps": 100, "batch_size": 8, "seq_len": seq_len, "lr": lr, "init_from": str(request.model),
            "distill": teach, "sampler": {"kind": "single", "largest": "budget"},
        },
        "search": {"objectives": {"val_loss": "min", "params": "min"}, "evaluations": 100},
        "retrain": {
            "train": {"steps": 500, "lr": healing_lr, "distill": teach | {"blocks": 0.1}}, "seeds": 1, "inherit": True,
            "hand_designed": [], "pruned": list(_RECIPES) if request.baselines else [], "original": True,
        },
    }  # fmt: skip
    if request.max_params is not None:
        values["budget"]["max_params"] = request.max_params
    else:
        values["search"]["objectives"] = {"val_loss": "min", "decode_latency_ms": "min"}
        values["search"]["constraints"] = {"decode_latency_ms": request.latency_ms}
        values["hardware"] = {"device": "this", "method": "table"}
    return values


def compress_config(request: Request, sets: list[str]) -> Config:
    """The config of a compression after `--set`.

    Networks far below the limit on parameters take no part, where there are others and `--set` says nothing else: the
    supernet is trained for the sizes that are asked for.
    """
    values = compress_values(request)
    config = make_config(values, sets, "compress")
    most = config.budget.max_params
    if most is None or any(text.partition("=")[0] in {"budget", "budget.min_params"} for text in sets):
        return config
    narrow = replace(config.budget, min_params=math.ceil(_LEAST_SHARE * most))
    try:
        feasible = BudgetSampler(config.space, narrow).feasible(generator(0, "compress"))
    except UserError:  # `check_before` says what the space reaches
        feasible = False
    return make_config(values, [*sets, f"budget.min_params={narrow.min_params}"], "compress") if feasible else config


def space_values(model: Path, *, per_layer: bool) -> dict[str, Any]:
    """The space whose largest network is the model; see the rules of this module."""
    base, whole = read_shape(model)
    (_, spec), depth = whole.kept[0], whole.depth

    def parts(size: int, shares: tuple[float, ...], multiple: int) -> list[int]:
        return sorted({min(size, max(1, math.ceil(size * share / multiple) * multiple)) for share in shares} | {size})

    least = max(1, math.ceil(depth / 2))
    depths = sorted({round(least + (depth - least) * i / 4) for i in range(5)})
    return {
        "base": asdict(base),
        "layers": depth,
        "hidden_size": parts(whole.hidden_size, (0.5, 0.625, 0.75, 0.875), 8),
        "depth": {"choices": depths, "policy": "keep_ends" if least > 1 else "any"},
        "kv_heads": {"choices": parts(spec.kv_heads, (0.5,), 1), "per_layer": per_layer},
        "queries_per_group": parts(spec.queries_per_group, (0.5,), 1),
        "head_dim": spec.head_dim,
        **({"experts": parts(spec.experts, (0.5,), 1), "top_k": spec.top_k} if spec.experts > 1 else {}),
        "ffn_size": {
            "choices": parts(spec.ffn_size, (0.25, 0.375, 0.5, 0.625, 0.75, 0.875), 4),
            "per_layer": per_layer,
        },
    }


def parse_limit(text: str, model: Path) -> int:
    """A number of parameters: 800000, 1.5M, 2B, or a share of the model's, 50%.

    Raises:
        UserError: neither.
    """
    if not text.strip().endswith("%"):
        return parse_count(text)
    try:
        share = float(text.strip()[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(f"--max-params {text}: a share of the model must lie between 0% and 100%, both excluded")
    base, whole = read_shape(model)
    return int(share * count_params(whole, base).total)


def check_before(config: Config) -> None:
    """Refuse what would end the run later, before its folder is made.

    Raises:
        UserError: no text, a tokenizer that does not fit, experts (which make a model larger), or a budget that the
            model meets as it is or that nothing meets (with the range of the space).
    """
    _, whole = read_shape(Path(config.train.init_from or ""))
    if max(config.space.experts.choices) > 1 and whole.kept[0][1].experts == 1:
        raise UserError(
            f"space.experts = {list(config.space.experts.choices)}: copies of a feed-forward make no model smaller; "
            "for a mixture out of a dense model write a config and use llmnas train CONFIG --init-from HF_DIR"
        )
    open_corpus(config.data.source)
    read_model_tokenizer(Path(config.data.tokenizer or ""), config.space.base.vocab_size)
    space, base = config.space, config.space.base
    ends = (space.smallest(), space.envelope)
    limit, unit = config.budget.max_params, "parameters"
    low, high = (float(count_params(arch, base).total) for arch in ends)
    if limit is not None:
        _require_between("--max-params", limit, low, high, ",.0f", unit)
    latency = config.search.constraints.get("decode_latency_ms")
    if isinstance(latency, int | float):
        bench = this_device(config.hardware.threads if config.hardware else 1)
        timings = measure_latency(ends, base, "decode", config.budget.workload, bench, _CHECK_SECONDS)
        _require_between("--latency-ms", latency, timings[0].ms, timings[1].ms, ".3g", "ms a token on this machine")


def _require_between(option: str, limit: float, low: float, high: float, form: str, unit: str) -> None:
    if limit >= high:
        raise UserError(f"{option} {limit:{form}}: the model has {high:{form}} {unit} already; ask for less")
    if limit < low:
        raise UserError(f"{option} {limit:{form}}: below the smallest network of the space, {low:{form}} {unit}")


def compress_table(context: Context) -> Table:
    """The model, what was found, before and after healing, and the baselines that were asked for."""
    config, run = context.config, context.run
    windows, _ = context.loss_windows()
    model = load_weights(Transformer(config.space, seed=None), run.check(run.initial)).eval()
    taught = float(context.losses(model, None, windows).mean())
    archive = Archive.load(run.evaluations)
    found = chosen(context, archive)
    archive.close()
    of_model = count_params(config.space.envelope, config.space.base).total
    cut = context.losses(model, found.arch, windows).mean()
    named = {"the model": (of_model, taught)}
    if config.train.correction:
        untaught = load_weights(Transformer(config.space, seed=None), run.check(run.pretrained)).eval()
        named = {
            "the model": (of_model, float(context.losses(untaught, None, windows).mean())),
            "the model, trained on the text": (of_model, taught),
        }
    named |= {
        "found, cut out of the model": (int(found.metrics["params"]), float(cut)),
        "found, in the trained supernet": (int(found.metrics["params"]), found.metrics["val_loss"]),
    }
    result = retrained(run)
    titles = {"found": "found, healed", **_BASELINES}
    for name, runs in result["runs"].items():
        named[titles.get(name, name)] = (runs[0]["params"], sum(r["val_loss"] for r in runs) / len(runs))
    rows = [
        (name, f"{params:,}", f"{params / of_model:.0%}", f"{loss:.4f}", f"{math.exp(loss):.2f}")
        for name, (params, loss) in named.items()
    ]
    tokens = result["runs"]["found"][0]["tokens"]
    spent = train_facts(run, "train").get("tokens", 0)
    corrected = train_facts(run, "correction").get("tokens", 0)
    first = f", which was trained on {corrected:,} tokens first," if corrected else ""
    note = (
        f"Validation text of {config.data.source}. Healed: {tokens:,} tokens each, the model{first} as teacher; the "
        f"found one starts from the supernet, which saw {spent:,} tokens before, the others from the model."
    )
    equal = [f"{c['against']}: {verdict(c)}" for c in result["comparisons"] if c.get("of") == "found_cut"]
    healed, original = (named[titles[name]][1] for name in ("found", "original"))
    if healed < taught:
        note += (
            " The found one foresees this text better than its teacher, whose weight then falls (distill.weight: auto)."
        )
    if original < healed:
        note += f" The model trained alike is {healed - original:.4f} nats better than the found one: what size costs."
    note += f" From equal starts, found_cut against {'; against '.join(equal)}." if equal else ""
    return Table("Compressed", ("network", "parameters", "of the model", "val loss (nats)", "perplexity"), rows, note)
