"""Names of files that several rooms know."""

from __future__ import annotations

ABOUT_FILE = "llmnas.json"  # of an exported folder: the architecture, for tools; marks it as ours
GENERATION_FILE = "generation_config.json"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
"""What may lie in a pretrained model's folder and binds what is made of it."""
ORIGIN_FILE = "origin.json"  # beside a run's tokenizer: the pretrained model that it is of
