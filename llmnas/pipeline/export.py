"""Write the found network as a Hugging Face checkpoint."""

from __future__ import annotations

from llmnas.export import Card, ExportReport, export_hf
from llmnas.files import read_json
from llmnas.pipeline.context import Context
from llmnas.pipeline.stand_alone import load_alone
from llmnas.space import Architecture


def export(context: Context, *, force: bool = False) -> ExportReport:
    """Export the found architecture with the weights of its best retrained seed, verified on write."""
    config, run = context.config, context.run
    result = read_json(run.require(run.result("retrain"), "retrain"))
    best = min(result["runs"]["found"], key=lambda r: r["val_loss"])
    arch = Architecture.from_dict(best["architecture"])
    model = load_alone(context, arch, run.stand_alone("retrain", f"found-{arch.id}", best["seed"]))
    card = Card(
        name=f"{config.name}-{arch.id}",
        metrics={name: best[name] for name in ("val_loss", "perplexity", "bits_per_byte")},
        data=f"{config.data.source}, {config.data.validation:.0%} of the documents held out",
        seed=best["seed"],
        trained_tokens=best["tokens"],
    )
    report = export_hf(model, run.export(arch.id), tokenizer_path=run.tokenizer, card=card, force=force)
    run.record("export", folder=str(report.folder.relative_to(run.path)), model_class=report.class_name)
    return report
