"""Instructions a packet of our vhost-user backend and of DPDK's: ``python -m bench.instructions [--functions]``.

Each runs under callgrind, with dpdk-testpmd as the guest. Valgrind slows the backend down so far that the guest's rings
have a whole burst waiting, as long as the guest has its CPU: else polls that find nothing count too. All instructions
of the process count.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from bench import peers
from bench.peers import testpmd
from bench.test_vhost import BARS, CABLE, MODES

SETTLE, RUN = 2.0, 5.0  # seconds under callgrind


def instructions(backend: str, mode: str, length: int, count: int) -> tuple[float, str]:
    """Return instructions a packet, and callgrind's list of functions."""
    serve = {"virtio": testpmd.our_backend, "DPDK": testpmd.dpdk_backend}[backend]
    folder, paths = testpmd.sockets(count)
    with folder:
        out = Path(folder.name) / "callgrind"
        under = (peers.need("valgrind", "valgrind"), "--tool=callgrind", "--instr-atstart=no", "--fair-sched=yes",
                 f"--callgrind-out-file={out}")  # fmt: skip
        with serve(paths, under) as pid, testpmd.guest(paths, MODES[mode], length) as source:
            control = ["callgrind_control", str(pid)]
            time.sleep(SETTLE)
            peers.run([*control, "-i", "on"])
            time.sleep(SETTLE)
            before = source.packets()
            peers.run([*control, "--zero"])
            time.sleep(RUN)
            peers.run([*control, "--dump"])
            after = source.packets()
            peers.run([*control, "-i", "off"])
        (dump,) = (path for path in out.parent.glob("callgrind*") if "Trigger: Client" not in path.read_text()[:4000]
                   and "Trigger: Program" not in path.read_text()[:4000])  # fmt: skip
        text = peers.run(["callgrind_annotate", "--threshold=99", str(dump)])
    total = re.search(r"([\d,]+) .*PROGRAM TOTALS", text)
    assert total is not None, text
    if after == before:
        raise RuntimeError(f"no packet came back from {backend}")
    return int(total[1].replace(",", "")) / (after - before), text[total.end() :]


def main() -> int:
    parser = argparse.ArgumentParser(description="instructions a packet of our vhost-user backend and of DPDK's")
    parser.add_argument("--functions", action="store_true", help="list the functions that take them, too")
    parser.add_argument("-k", dest="only", default="", help="only rows whose name has this in it")
    args = parser.parse_args()
    try:
        testpmd.need()
        rows = [(f"loopback, {mode}", mode, length, 1) for mode, length in BARS]
        rows += [("cable, split", "split", length, 2) for length in CABLE]
        print(f"{'':36}{'virtio':>10}{'DPDK':>10}{'ratio':>8}", flush=True)
        for name, mode, length, count in rows:
            if args.only not in (title := f"{name}, {length} B"):
                continue
            figures = {}
            for backend in ("virtio", "DPDK"):
                figures[backend], functions = instructions(backend, mode, length, count)
                if args.functions:
                    print(functions)
            ours, theirs = figures.values()
            print(f"{title:36}{ours:>10.1f}{theirs:>10.1f}{ours / theirs:>8.2f}", flush=True)
    except peers.MissingPeer as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
