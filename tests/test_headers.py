"""A rule for the C headers that no run on one compiler can show."""

from __future__ import annotations

import re
from pathlib import Path

import virtio

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# *p, but not a * b; p->x; p[i]; and our functions that load
LOAD = re.compile(r"(?:^|[?:(,=+\-*/%&|^~!<>])\s*\*+\s*[\w(]|->|\[|load|fetch|get64|_mm\w*_u(8|16|32|64)\b")


def conditional_loads(text: str) -> list[str]:
    """Return the conditional expressions that load from memory in an operand that is not always evaluated."""
    statements = (" ".join(statement.split()) for statement in re.split(r"[;{}]", COMMENT.sub("", text)))
    found = [statement for statement in statements if "?" in statement and not statement.startswith("#")]
    return [statement for statement in found if LOAD.search(statement[statement.index("?") :])]


def test_no_conditional_expression_loads() -> None:
    """gcc 14 loads in both cases of such an expression: a fault at the end of a page (see virtio_sum_rest)."""
    assert conditional_loads("return n & 1 ? sum + *p : sum;")
    assert conditional_loads("return n & 1 ? _mm_crc32_u8(crc, *p) : crc;")
    assert conditional_loads("x = y ? z : a->b;")
    assert conditional_loads("x = y ? 0 : a[i];")
    assert not conditional_loads("x = n > 1 ? a * b : n / 2; /* x ? *p : 0 */ *p = 3;")
    headers = sorted((Path(virtio.get_include()) / "virtio").glob("*.h"))
    assert headers
    for header in headers:
        assert conditional_loads(header.read_text()) == [], header.name
