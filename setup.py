"""What setuptools cannot be told in pyproject.toml: the long description for a package index."""

import re
from pathlib import Path

from setuptools import setup


def long_description(readme: str) -> str:
    """The README without what only a checkout has: pictures go, links to other files of it become their text."""
    text = re.sub(r"^!\[[^\]]*\]\((?!https?://)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", text)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=long_description(readme), long_description_content_type="text/markdown")
