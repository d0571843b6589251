"""The command ``virtio top``: live rates of a running `virtio net`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtio.cli.status import Status

HEAD = ("endpoint", "queue", "frames/s", "Mbit/s", "kicks/s", "calls/s", "drops/s", "dropped by reason, in all")
CLEAR = "\x1b[H\x1b[2J"


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    command = commands.add_parser(
        "top",
        help="live rates of a running virtio net",
        description="Show rates, kicks, calls and drops of a running `virtio net`, each queue a line. "
        "With --poll nobody reads kicks, nor counts them: they are shown as -.",
    )
    command.add_argument(
        "process", nargs="?", default="", metavar="PID|SOCKET", help="which one (default: the one there is)"
    )
    command.add_argument("--seconds", type=float, default=1.0, metavar="S", help="between two looks (default 1)")
    command.add_argument("--count", type=int, default=0, metavar="N", help="tables, then end (default: no end)")
    command.add_argument("--json", action="store_true", help="print the counters as they are, one JSON object a line")
    command.set_defaults(run=run)


def find(process: str) -> str:
    """Return the socket of a process. Raises ValueError, with what there is, if that is not clear."""
    from virtio.cli.status import folder, running

    if "/" in process:
        return process
    if process:
        return str(folder() / f"{process}.sock")
    there = running()
    if len(there) != 1:
        names = ", ".join(path.stem for path in there) or "none"
        raise ValueError(f"which process? there are in {folder()}: {names}")
    return str(there[0])


def connected(path: str) -> Status:
    """Return the process at a socket. Raises OSError, or ConnectionError with what to think of it."""
    from virtio.cli.status import Status

    try:
        return Status(path)
    except ConnectionRefusedError:
        raise ConnectionError(f"nobody is at {path}: the process was killed") from None
    except FileNotFoundError:
        raise ConnectionError(f"no process has {path}") from None


def dropped(queue: Mapping[str, Any]) -> dict[str, int]:
    """Return why frames of a queue were dropped, those cut or completed on the way included."""
    if "send_dropped" in queue or "receive_dropped" in queue:
        return dropped_by_port(queue)
    found = dict(queue.get("dropped", {}))
    for reason, count in queue.get("executed", {}).get("dropped", {}).items():
        found[reason] = found.get(reason, 0) + count
    return found


def dropped_by_port(port: Mapping[str, Any]) -> dict[str, int]:
    """Return why a port dropped frames: by direction and errno, and the rest, for which nobody took them."""
    found: dict[str, int] = {}
    for way in ("send", "receive"):
        named = {name: n for name, n in port.items() if name.startswith(f"{way}_E")}
        rest = port.get(f"{way}_dropped", 0) - sum(named.values())
        found |= {name.replace("_", " "): n for name, n in named.items() if n}
        if rest > 0:
            found[f"{way} no taker"] = rest
    return found


def queues(answer: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield endpoint, name and counters of each queue of frames; and of its port, if that dropped any."""
    for endpoint, figures in answer["endpoints"].items():
        for name in sorted(figures, key=lambda name: (name[:2], len(name), name)):
            if name[:2] in ("rx", "tx") and name[2:].isdigit():
                yield endpoint, name, figures[name]
        port = figures.get("port", {})
        if dropped_by_port(port):
            yield endpoint, "port", port


def label(endpoint: str) -> str:
    """Return an endpoint's text without its options; but fd=NUMBER, which is in place of a path, stays."""
    head, *options = endpoint.split(",")
    return ",".join([head, *options[:1]]) if head.endswith(":") else head


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's lines: rates between two answers."""
    seconds = max(after["uptime"] - before["uptime"], 1e-3)
    old = {(endpoint, name): queue for endpoint, name, queue in queues(before)}
    lines: list[tuple[str, ...]] = [HEAD]
    for endpoint, name, queue in queues(after):
        last = old.get((endpoint, name), {})

        def rate(key: str, now: Mapping[str, Any] = queue, then: Mapping[str, Any] = last) -> float:
            return float(max(0, now.get(key, 0) - then.get(key, 0)) / seconds)

        figures = (
            f"{rate('frames'):,.0f}", f"{rate('bytes') * 8 / 1e6:,.1f}",
            *(f"{rate(key):,.0f}" if key in queue else "-" for key in ("kicks", "calls")),  # -: nobody counts
        )  # fmt: skip
        reasons = dropped(queue)
        drops = max(0, sum(reasons.values()) - sum(dropped(last).values())) / seconds
        why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        # what a port took and gave stands with its queues
        shown = figures if name != "port" else ("",) * len(figures)
        lines.append((label(endpoint), name, *shown, f"{drops:,.0f}", why))
    return lines


def table(lines: list[tuple[str, ...]]) -> str:
    """Align: words to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 2 <= i <= 6 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def run(options: argparse.Namespace) -> int:
    """Show until SIGINT, or the process ends (then the exit code is 1), or for so many tables."""
    if not 0.05 <= options.seconds <= 3600:
        print(f"virtio top: --seconds {options.seconds} is not within 0.05 to 3600", file=sys.stderr)
        return 2
    if options.count < 0:
        print(f"virtio top: --count {options.count} is negative", file=sys.stderr)
        return 2
    from virtio.cli.status import Ended

    try:
        path = find(options.process)
        with connected(path) as status:
            before, shown = status.read(), 0
            while True:
                time.sleep(options.seconds)
                after = status.read()
                if options.json:
                    print(json.dumps(after), flush=True)
                else:
                    if sys.stdout.isatty():
                        print(CLEAR, end="")
                    print(f"{Path(path).name}: process {after['pid']}, up {after['uptime']:,.0f} s")
                    print(table(rows(before, after)) + "\n", flush=True)
                before, shown = after, shown + 1
                if shown == options.count:
                    return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads what we print has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Ended as error:
        print(f"virtio top: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"virtio top: {error}", file=sys.stderr)
        return 2
