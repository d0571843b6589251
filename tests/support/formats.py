"""Both ring formats, for tests that are run with either."""

from __future__ import annotations

import pytest

FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
