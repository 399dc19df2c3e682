"""The door to files: `writing` makes them whole or absent, the other modules read what lies on disk."""

from llmnas.files.companions import read_companions
from llmnas.files.hashing import BLOCK, Digest, Written, content_hash, require_written, sha256
from llmnas.files.json_files import as_kind, parse_json, read_as, read_json, read_object
from llmnas.files.names import ABOUT_FILE, GENERATION_FILE, LICENCES, ORIGIN_FILE
from llmnas.files.opening import inside, open_regular, read_bytes, read_most, read_text, regular
from llmnas.files.packed import PACKED, open_unpacked
from llmnas.files.paths import PathText, user_path
from llmnas.files.shown import one_line
from llmnas.files.writing import Seal, atomic_open, hashed_open, naming, sync_dir, write_bytes, write_json, write_text
from llmnas.files.yaml_files import parse_yaml, read_yaml

__all__ = [
    "ABOUT_FILE",
    "BLOCK",
    "GENERATION_FILE",
    "LICENCES",
    "ORIGIN_FILE",
    "PACKED",
    "Digest",
    "PathText",
    "Seal",
    "Written",
    "as_kind",
    "atomic_open",
    "content_hash",
    "hashed_open",
    "inside",
    "naming",
    "one_line",
    "open_regular",
    "open_unpacked",
    "parse_json",
    "parse_yaml",
    "read_as",
    "read_bytes",
    "read_companions",
    "read_json",
    "read_most",
    "read_object",
    "read_text",
    "read_yaml",
    "regular",
    "require_written",
    "sha256",
    "sync_dir",
    "user_path",
    "write_bytes",
    "write_json",
    "write_text",
]
