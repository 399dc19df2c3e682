"""Checkpoints that stock tools load."""

from llmnas.export.card import Card
from llmnas.export.hf import ExportReport, export_hf
from llmnas.export.shape import StockShape, stock_class, stock_shape

__all__ = ["Card", "ExportReport", "StockShape", "export_hf", "stock_class", "stock_shape"]
