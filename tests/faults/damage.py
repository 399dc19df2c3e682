"""Damages of the files of a folder, the same each time: empty, half, one bit."""

import hashlib
import shutil
from pathlib import Path

DAMAGES = ("empty", "half", "bit")


def damaged(path, how):
    """Damage a file in place; False where that leaves it as it was."""
    data = path.read_bytes()
    if how == "empty":
        new = b""
    elif how == "half":
        new = data[: len(data) // 2]
    else:
        seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8], "little")
        place = seed % max(len(data), 1)
        new = data[:place] + bytes([data[place] ^ (1 << seed // 7 % 8)]) + data[place + 1 :] if data else data
    path.write_bytes(new)
    return new != data


def copied(source, target):
    """A copy of a folder that shares nothing with it, in place of an earlier copy."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return Path(target)


def contents(folder, but=()):
    """Every file below a folder by its hash, without those that differ from run to run."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }
