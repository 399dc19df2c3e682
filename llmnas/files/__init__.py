"""The door to files: `writing` makes them whole or absent, the other modules read what lies on disk."""

from llmnas.files.hashing import BLOCK, Digest, Written, require_written, sha256
from llmnas.files.json_files import read_json, read_object
from llmnas.files.names import ABOUT_FILE, COMPANIONS
from llmnas.files.writing import Seal, atomic_open, hashed_open, naming, sync_dir, write_bytes, write_json, write_text
from llmnas.files.yaml_files import parse_yaml, read_yaml

__all__ = [
    "ABOUT_FILE",
    "BLOCK",
    "COMPANIONS",
    "Digest",
    "Seal",
    "Written",
    "atomic_open",
    "hashed_open",
    "naming",
    "parse_yaml",
    "read_json",
    "read_object",
    "read_yaml",
    "require_written",
    "sha256",
    "sync_dir",
    "write_bytes",
    "write_json",
    "write_text",
]
