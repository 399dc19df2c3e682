"""Names of files that several rooms know."""

from __future__ import annotations

ABOUT_FILE = "llmnas.json"  # of an exported folder: the architecture, for tools; marks it as ours
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What may lie beside a pretrained model's `tokenizer.json` and belongs to it: kept as it is."""
