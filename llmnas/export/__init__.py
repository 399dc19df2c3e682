"""Checkpoints that stock tools load."""

# ruff: noqa: E402  (what is missing is said before it is imported)
from llmnas.extras import require_modules

require_modules("torch", "transformers", "safetensors", "tokenizers", use="llmnas.export")

from llmnas.export.card import Card
from llmnas.export.hf import ExportReport, export_hf
from llmnas.export.shape import StockShape, stock_class, stock_shape

__all__ = ["Card", "ExportReport", "StockShape", "export_hf", "stock_class", "stock_shape"]
