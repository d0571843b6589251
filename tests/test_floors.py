"""Folders are floors: what each may import and cimport (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtio.registry import TYPES

ROOT = Path(__file__).parent.parent

# what a floor may use, beside itself and what those it names may use
BELOW: dict[str, tuple[str, ...]] = {
    "base": (),  # constants, errors, features, registry: numbers and names
    "core": ("base",),
    "memory": ("core",),
    "virtqueue": ("memory",),
    "event": ("core",),
    "offload": ("core",),
    "ports": ("event", "offload", "memory"),
    "netdev": ("virtqueue", "ports"),
    "vtnet": ("virtqueue", "ports"),
    "device": ("virtqueue", "event"),
    "driver": ("virtqueue", "event"),
    "direct": ("device", "driver"),
    "pci": ("device", "driver"),
    "vhost_user": ("device", "driver"),
    "net": ("netdev", "vtnet", "direct", "pci"),
    "capi": ("virtqueue",),
    "cli": ("net", "vhost_user"),
}
# a device type in one folder
BELOW |= {
    home.folder.removeprefix("virtio."): ("device", "driver")
    for home in TYPES.values()
    if home.folder.removeprefix("virtio.") not in BELOW
}
FILES = {"_ring": "virtqueue", "_capi": "capi", "direct": "direct", "__main__": "cli"}
BASE = ("constants", "errors", "features", "registry")
# what the package itself offers (virtio/__init__.py) may be used by those who may use where it comes from
EXPORTS = {
    "Chain": "virtqueue", "DeviceQueue": "virtqueue", "DriverQueue": "virtqueue", "QueueLayout": "virtqueue",
    "GuestMemory": "memory", "Region": "memory", "Device": "device", "Driver": "driver", "DirectTransport": "direct",
}  # fmt: skip


def reach(floor: str) -> set[str]:
    """Return all that a floor may use."""
    return {floor, *(name for below in BELOW[floor] for name in reach(below))}


def floor_of(module: str) -> str | None:
    """Return the floor of a dotted name; None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "virtio":
        return "bench" if parts[0] in ("bench", "tests") else None
    if len(parts) == 1:
        return "base"
    if parts[1] in BELOW and parts[1] not in FILES:
        return parts[1]
    return FILES.get(parts[1], "base" if parts[1] in BASE or parts[1].startswith("__") else EXPORTS.get(parts[1]))


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of each import and cimport, those in functions too."""
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                package = node.module in ("virtio", None)
                yield from ((node.lineno, f"virtio.{a.name}" if package else str(node.module)) for a in node.names)
        return
    for found in re.finditer(r"^[ \t]*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n]*)", text, re.M):
        line = text.count("\n", 0, found.start()) + 1
        if found[1] == "virtio":
            yield from ((line, f"virtio.{name}") for name in re.findall(r"\w+", found[2]))
        else:
            yield line, found[1]
    for found in re.finditer(r"^[ \t]*c?import\s+([\w.]+)", text, re.M):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def violations(path: Path, floor: str) -> list[str]:
    allowed = reach(floor)
    return [
        f"{path.relative_to(ROOT)}:{line}: {floor} may not use {name} ({used})"
        for line, name in names_of(path)
        if (used := floor_of(name)) is not None and used not in allowed
    ]


def sources(floor: str) -> list[Path]:
    if floor == "base":
        found = [ROOT / "virtio" / f"{name}.py" for name in BASE]
    elif floor == "net":
        found = [*(ROOT / "net").rglob("*.py")]
    else:
        found = [p for name, of in FILES.items() if of == floor for p in (ROOT / "virtio").glob(f"{name}.*")]
        found += (ROOT / "virtio" / floor).rglob("*.*")
    return sorted(path for path in found if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".pxi"))


@pytest.mark.parametrize("floor", BELOW)
def test_a_floor_uses_those_below(floor: str) -> None:
    assert sources(floor)
    found = [line for path in sources(floor) for line in violations(path, floor)]
    assert not found, "\n".join(found)


def test_each_folder_is_a_floor() -> None:
    folders = {path.name for path in (ROOT / "virtio").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == {floor for floor in BELOW if (ROOT / "virtio" / floor).is_dir()}
    files = {path.stem for path in (ROOT / "virtio").iterdir() if path.suffix in (".py", ".pyx", ".pxd", ".pyi")}
    assert files == {*FILES, *BASE, "__init__"}


def parts() -> dict[str, str]:
    """Return the extension of each .pxd that is a part of one, by its dotted name."""
    found = {}
    for path in (ROOT / "virtio").rglob("*.pxd"):
        text = path.read_text().replace("\n# ", " ")
        if extension := re.search(r"Compiled into ([\w.]+) and nowhere else", text):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = extension[1]
    return found


def test_a_part_of_an_extension_is_compiled_into_it_alone() -> None:
    belongs = parts()
    assert belongs
    for floor in BELOW:
        for path in sources(floor):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for line, name in names_of(path):
                home = belongs.get(name)
                assert home in (None, module, belongs.get(module)), f"{path}:{line}: {name} is a part of {home}"


def cimported(path: Path, seen: set[Path]) -> set[Path]:
    """Return seen with the .pxd files that a file depends on: its own, and those it cimports, and so on."""
    text = path.read_text()
    names = re.findall(r"^(?:from (virtio[\w.]*) cimport|cimport (virtio[\w.]*))", text, re.MULTILINE)
    files = [ROOT.joinpath(*(one or other).split(".")).with_suffix(".pxd") for one, other in names]
    for file in [path.with_suffix(".pxd"), *files]:
        if file.exists() and file not in seen:
            seen.add(file)
            cimported(file, seen)
    return seen


@pytest.mark.parametrize(
    ("contract", "most"), [("_ring.pxd", 16), ("memory/guest_memory.pxd", 25), ("memory/sigbus.pxd", 3)]
)
def test_an_edit_of_a_contract_rebuilds_few(contract: str, most: int) -> None:
    """What is cimported without need is compiled again for each edit."""
    modules = [path for folder in ("virtio", "bench/kernels") for path in (ROOT / folder).rglob("*.pyx")]
    users = [path.stem for path in modules if ROOT / "virtio" / contract in cimported(path, set())]
    assert 1 < len(users) <= most, users


@pytest.mark.parametrize(
    ("text", "suffix", "floor", "line"),
    [
        ("from virtio.ports.tap import Tap\n", ".py", "offload", 1),
        ("def f():\n    import virtio.net.vtnet\n", ".py", "pci", 2),
        ("from virtio import Device\n", ".py", "event", 1),
        ("from virtio.virtqueue.structs cimport (\n    virtio_chain,\n)\n", ".pyx", "ports", 1),
        ("\nfrom virtio._ring cimport device_pop_burst\n", ".pxd", "memory", 2),
        ("cimport virtio.memory.region\n", ".pyx", "offload", 1),
        ("from virtio cimport GuestMemory\n", ".pyx", "event", 1),
        ("from bench.kernels.devicebench import x\n", ".py", "cli", 1),
    ],
)
def test_a_violation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text, suffix, floor, line) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / f"some{suffix}"
    path.write_text(text)
    (found,) = violations(path, floor)
    assert found.startswith(f"some{suffix}:{line}: {floor} may not use ")
