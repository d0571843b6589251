"""Print what a build requires, from pyproject.toml: a pip argument a line."""

import tomllib
from pathlib import Path

print(*tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"], sep="\n")
