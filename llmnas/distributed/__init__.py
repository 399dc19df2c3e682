"""Processes that share files: who works in a run folder, and whether the others still live."""
