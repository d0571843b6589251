"""The rule for peers: a missing one skips the test with the reason and the install line, and fails it in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def need_peer(program: str, package: str) -> str:
    """Return the path of a program that a test needs, or skip; with CI=true a missing one is a failure."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
