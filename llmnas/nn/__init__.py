"""Layers whose sizes are arguments: weights of the largest network, leading slices for the others."""

from llmnas.extras import require_modules

require_modules("torch", use="llmnas.nn")
