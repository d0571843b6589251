"""The peers: C programs of our own, built here (some against DPDK), and Linux's ringtest."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("VIRTIO_BENCH_CACHE", Path.home() / ".cache" / "virtio-bench"))
# setup.py's, so that the ratio compares programs and not compilers
FLAGS = ("-O3", "-fno-tree-slp-vectorize")
NATIVE = ("-O3", "-march=native")


class MissingPeer(Exception):
    """A peer cannot be had here; the text says why and what to install."""


def need(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise MissingPeer(f"{program} is not installed: apt-get install {package}")
    return path


def run(command: list[str], timeout: float = 120, **more: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


@functools.cache
def build(name: str, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile bench/peers/NAME.c with these flags; return the program."""
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / f"{name}{''.join(flags)}"
    source = HERE / f"{name}.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        run([need("gcc", "gcc"), *flags, "-pthread", str(source), "-o", str(program)])
    return program


@functools.cache
def build_dpdk(name: str, *, native: bool = False) -> Path:
    """Compile bench/peers/NAME.c against libdpdk; return the program.

    As packaged means the flags of its pkg-config file, hence Debian's -march=corei7; native goes behind them and wins.
    """
    config = [need("pkg-config", "libdpdk-dev pkg-config"), "libdpdk"]
    try:
        cflags, libs = run([*config, "--cflags"]).split(), run([*config, "--libs"]).split()
    except RuntimeError as error:
        raise MissingPeer(f"DPDK is not installed: apt-get install libdpdk-dev pkg-config ({error})") from error
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / f"{name}-dpdk{'-native' if native else ''}"
    source = HERE / f"{name}.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        flags = ["-O3", *cflags, "-DALLOW_EXPERIMENTAL_API", *(["-march=native"] if native else [])]
        run([need("gcc", "gcc"), *flags, "-pthread", str(source), "-o", str(program), *libs])
    return program


def dpdk(name: str, *arguments: object, cpu: int, native: bool = False) -> Any:
    """Run bench/peers/NAME.c on one core, as ``NAME EAL-options -- arguments``; return its last line, which is JSON.

    A program that starts no EAL skips the options up to ``--``. Nothing of the machine is needed (huge pages, PCI),
    and nothing is shared with other runs.
    """
    eal = ["-l", str(cpu), "--no-huge", "--no-shconf", "--no-pci", "-m", "512", "--no-telemetry", "--log-level=error"]
    pinned = [need("taskset", "util-linux"), "-c", str(cpu), str(build_dpdk(name, native=native))]
    return json.loads(run([*pinned, *eal, "--", *map(str, arguments)]).strip().splitlines()[-1])


def ringcycle(mode: str, batch: int, count: int, *, cpu: int, flags: tuple[str, ...] = FLAGS) -> float:
    """Run the C program of the ring cycle once; return nanoseconds a chain (thread CPU time)."""
    command = [
        need("taskset", "util-linux"),
        "-c",
        str(cpu),
        str(build("ringcycle", flags)),
        mode,
        str(batch),
        str(count),
        "1",
    ]
    return float(json.loads(run(command))["ns"][0])


def pingpong() -> dict[str, float]:
    """Return the round trip of a cache line between cores 0 and 1: nanoseconds, p10, median, p90."""
    return dict(json.loads(run([str(build("pingpong")), "0", "1"])))


def kernel_source() -> str:
    """Return the package of this Debian's kernel source: linux-source-6.1 of 12, linux-source-6.12 of 13."""
    depends = run([need("apt-cache", "apt (it knows the kernel source's package)"), "depends", "linux-source"])
    return next(line.split()[1] for line in depends.splitlines() if "Depends: linux-source-" in line)


@functools.cache
def ringtest_folder() -> Path:
    """Fetch and build Linux's tools/virtio/ringtest; return the folder of its programs."""
    folder = CACHE / "ringtest"
    built = folder / "linux" / "tools" / "virtio" / "ringtest"
    if (built / "virtio_ring_inorder").exists():
        return built
    apt = need("apt-get", "apt (the kernel source is fetched from Debian's packages)")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        source = kernel_source()
        run([apt, "download", source], timeout=900, cwd=folder)
        deb = next(folder.glob(f"{source}_*.deb"))
        run(["dpkg-deb", "-x", str(deb), str(folder / "deb")], timeout=300)
        archive = next((folder / "deb" / "usr" / "src").glob(f"{source}.tar.*"))
        (folder / "linux").mkdir(exist_ok=True)
        wanted = ["*/tools/virtio/*", "*/include/uapi/linux/virtio_ring.h"]
        unpack = ["tar", "-xf", str(archive), "-C", str(folder / "linux"), "--strip-components=1", "--wildcards"]
        run(unpack + wanted, timeout=600)
        run(
            ["make", "-C", str(built), "ring", "virtio_ring_0_9", "virtio_ring_poll", "virtio_ring_inorder"],
            timeout=300,
        )
    except (RuntimeError, StopIteration, OSError) as error:
        raise MissingPeer(
            f"ringtest cannot be built ({error}): apt-get update; apt-get install xz-utils make gcc"
        ) from error
    shutil.rmtree(folder / "deb", ignore_errors=True)
    deb.unlink()
    return built


def ringtest(program: str, cycles: int, *options: str) -> float:
    """Run one of ringtest's programs, guest on core 0 and host on core 1; return nanoseconds a buffer (wall clock)."""
    command = [
        str(ringtest_folder() / program),
        "--host-affinity",
        "1",
        "--guest-affinity",
        "0",
        "--run-cycles",
        str(cycles),
        *options,
    ]
    start = time.perf_counter()
    run(command, timeout=300)
    return (time.perf_counter() - start) / cycles * 1e9
