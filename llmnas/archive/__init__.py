"""The archive on disk that holds every evaluation of one search."""

from llmnas.archive.store import Archive, read_archive

__all__ = ["Archive", "read_archive"]
