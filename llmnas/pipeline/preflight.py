"""Before any work on a pretrained model: is it computed here as in transformers, and will its export verify?"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from llmnas.data import ModelTokenizer, copy_tokenizer
from llmnas.errors import RunError, UserError
from llmnas.export import Card, export_hf
from llmnas.export.stock_logits import stock_logits
from llmnas.export.verify import check_source_tokenizer
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, stand_alone_shape
from llmnas.train.upcycle import upcycle
from llmnas.train.warmstart import Pretrained, check_pretrained, read_pretrained, warm_start

TOLERANCE = 1e-4
"""Of a logit, relative to the largest one: float32 in another order of adding differs by about 1e-6."""
_TOKENS = 64


def preflight(folder: Path, space: SearchSpace, tokenizer: ModelTokenizer) -> None:
    """Refuse a model whose run would end in something else than what was asked for; nothing is written.

    Args:
        folder: of the model.
        space: that it is to be cut to.
        tokenizer: its own.

    Raises:
        UserError: it cannot be read, has other logits here than in transformers, or a network of this kind with this
            tokenizer would not verify when it is exported.
    """
    _require_fit(check_pretrained(folder), space)
    require_equal_logits(folder)
    require_export(folder, space, tokenizer)


def _require_fit(shapes: Pretrained, space: SearchSpace) -> None:
    """Everything that a warm start would refuse, without a number in memory."""
    with torch.device("meta"):
        model = Transformer(space, seed=None)
        warm_start(model, upcycle(shapes, model))


@torch.no_grad()
def require_equal_logits(folder: Path) -> None:
    """Compare with transformers' own class on random tokens; one model at a time is in memory."""
    pretrained = read_pretrained(folder)
    base = pretrained.base
    count = min(_TOKENS, base.max_seq)
    tokens = torch.randint(base.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    model = Transformer(FixedShape(base, pretrained.arch), seed=None)
    model.load_state_dict(pretrained.weights, strict=False, assign=True)
    del pretrained
    ours = model.eval()(tokens)
    del model
    theirs = stock_logits(folder, tokens)
    if ours.shape != theirs.shape:
        raise UserError(f"{folder}: logits {list(ours.shape)}, transformers gives {list(theirs.shape)}")
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= TOLERANCE:  # NaN must fail
        raise UserError(
            f"{folder}: the logits computed here are off by {difference:.1e} of the largest of transformers, more than "
            f" {TOLERANCE:.0e}; config.json asks for something that is not supported"
        )


def require_export(folder: Path, space: SearchSpace, tokenizer: ModelTokenizer) -> None:
    """Export a tiny random network of the space's kind with the model's own tokenizer, and verify it."""
    try:
        check_source_tokenizer(folder)
    except RunError as error:
        raise UserError(f"{folder}: tokenizer.json is not what the model was trained with: {error}") from None
    base, arch = _tiny(space)
    model = Transformer(stand_alone_shape(base, base.rope_dim or arch.kept[0][1].head_dim, arch), seed=0)
    with tempfile.TemporaryDirectory() as place:
        copied = copy_tokenizer(tokenizer, Path(place, "data"))
        try:
            export_hf(
                model, Path(place, "export"), tokenizer_path=copied, eos_id=tokenizer.eos_id,
                card=Card("preflight", {}, "nothing", 0, 0),
            )  # fmt: skip
        except (RunError, UserError) as error:
            reason = str(error).partition("does not verify: ")[2] or str(error)
            raise UserError(f"{folder}: what is made of it could not be exported: {reason}") from None


def _tiny(space: SearchSpace) -> tuple[BaseModel, Architecture]:
    """Two layers of the space's kinds at sizes that take no time, and the base that they keep."""
    base, widest = space.base, max(spec.head_dim for _, spec in space.envelope.kept)
    largest = space.envelope.kept[0][1]
    spec = replace(largest, kv_heads=1, queries_per_group=min(2, largest.queries_per_group), ffn_size=16)
    layers: tuple[LayerSpec, ...] = (spec,) * min(2, space.layers)
    return replace(base, rope_dim=base.rope_dim or widest), Architecture(16, layers)
