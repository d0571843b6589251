"""Lines and branches of the Cython code that a run reached, and its largest holes.

    coverage.py FOLDER: the copy of the tree that tools/coverage.sh built with VIRTIO_COVERAGE=1 and ran tests in

Cython's line tracing puts a call before the C code of each line, in functions without the GIL and inlined ones too.
gcov counts that call, and both ways of each condition that the line has in C. What Cython adds to a line (errors,
references, arguments) is no branch here. A function in a .pxd is in many modules: it is reached if it is in one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MARKER = re.compile(r'\s*/\* "(.*)":(\d+)$')
CURRENT = re.compile(r" \* (.*?)\s+# <<<<<<+$")
LINE = re.compile(r"\s*__Pyx_TraceLine\((\d+),")
WORDS = re.compile(r"\b(if|elif|while|for|and|or|assert)\b")
# a condition of the source is a temporary of its own; checks for errors are expressions, or end in a goto
CONDITION = re.compile(r"\s*(?:\} else )?if \((?:unlikely\()?!?__pyx_t_\d+\)?\) (?:\{|break;)|\s*switch \(__pyx_\w+\)")
COUNTED = re.compile(r"\s*for \(__pyx_t_\d+ = ")
HOLES = 10

Lines = dict[str, dict[int, bool]]  # by file: each line that has code, and whether it ran
Branches = dict[tuple[str, int, int], list[bool]]  # by file, line and condition: each way, and whether it was taken


def counts(folder: Path) -> dict[Path, dict[int, tuple[int, list[int]]]]:
    """Return what gcov counted, by C file and line: how often it ran, and each way of its branches."""
    notes = sorted(folder.glob("build/coverage/temp.*/**/*.gcno"))
    done = subprocess.run(
        ["gcov", "--json-format", "--branch-probabilities", "--stdout", *map(str, notes)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[Path, dict[int, tuple[int, list[int]]]] = {}
    for text in done.stdout.splitlines():
        for file in json.loads(text)["files"]:
            if file["file"].endswith(".c"):
                found[folder / file["file"]] = {
                    line["line_number"]: (line["count"], [branch["count"] for branch in line["branches"]])
                    for line in file["lines"]
                }
    return found


def read(path: Path, counted: dict[int, tuple[int, list[int]]], lines: Lines, branches: Branches) -> None:
    """Add what a C file has to lines and branches."""
    name, number, text, condition, ours = "", 0, "", 0, False
    with path.open() as file:
        for at, row in enumerate(file, 1):
            if found := MARKER.match(row):
                name, number, text, condition = found[1], int(found[2]), "", 0
                ours = name.startswith("virtio/")
            elif not text and (found := CURRENT.match(row)):
                text = found[1].strip()
            elif not ours or at not in counted:  # the compiler leaves out functions that a module does not use
                continue
            elif found := LINE.match(row):
                lines[name][int(found[1])] = lines[name].get(int(found[1]), False) or counted[at][0] > 0
            elif WORDS.search(text) and (COUNTED if text.startswith("for ") else CONDITION).match(row):
                ways = [count > 0 for count in counted[at][1]]
                known = branches.setdefault((name, number, condition), [False] * len(ways))
                known[:] = [one or other for one, other in zip(known, ways, strict=True)]
                condition += 1


def holes(lines: Lines) -> list[tuple[int, str, int, int]]:
    """Return each run of lines that did not run: count, file, first and last."""
    found = []
    for name, ran in lines.items():
        run: list[int] = []
        for number in [*sorted(ran), 0]:
            if number and not ran[number]:
                run.append(number)
            elif run:
                found.append((len(run), name, run[0], run[-1]))
                run = []
    return sorted(found, key=lambda hole: (-hole[0], hole[1:]))


def share(some: int, every: int) -> str:
    return f"{some} of {every} ({100 * some / max(every, 1):.1f} %)"


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    lines: Lines = defaultdict(dict)
    branches: Branches = {}
    for path, counted in counts(folder).items():
        read(path, counted, lines, branches)
    ways: dict[str, list[bool]] = defaultdict(list)
    for (name, _, _), taken in branches.items():
        ways[name] += taken
    for name, ran in sorted(lines.items()):
        reached, taken = share(sum(ran.values()), len(ran)), share(sum(ways[name]), len(ways[name]))
        print(f"{name:40} lines {reached:22} branches {taken}")
    print("\nlargest holes, lines that did not run")
    for count, name, first, last in holes(lines)[:HOLES]:
        print(f"{count:5}  {name}:{first}-{last}")
    ran_all = [ran for file in lines.values() for ran in file.values()]
    taken_all = [taken for file in ways.values() for taken in file]
    print(f"\ncoverage: lines {share(sum(ran_all), len(ran_all))}, branches {share(sum(taken_all), len(taken_all))}")


if __name__ == "__main__":
    main()
