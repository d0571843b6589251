"""Folders are floors: what each may import, cimport and include (docs/architecture.md)."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtio
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
# what the package itself offers may be used by those who may use where it comes from; a plain value is its own
EXPORTS = {name: getattr(getattr(virtio, name), "__module__", "virtio") for name in virtio.__all__}
# a header is of the floor whose .pxd declares it, or of the one that alone needs it
HEADERS = {
    header: floor
    for floor, headers in {
        "core": "atomic",
        "memory": "memory truncation",
        "virtqueue": "inflight queue ring",
        "event": "bell foreign_bell task",
        "offload": "checksum checksum_portable checksum_x86 coalesce crc32c frame hash net_hdr offload segment simd",
        "ports": "port taploop",
        "netdev": "net_copy",
        "capi": "capi",
    }.items()
    for header in headers.split()
}

# strings, comments and line ends that are escaped: what must not be taken for a statement, or for the end of one
OPAQUE = re.compile(r"""("{3}|'{3}|"|')(?:\\.|(?!\1)[^\\])*\1|#[^\n]*|\\\n""", re.S)
# a line end within them is a \r, so that lines can be counted still
QUIET = str.maketrans("\\\n;:", " \r__")
STATEMENT = re.compile(
    r"""(?:^|[;:])[ \t\r]*(?P<statement>
        (?:from\b(?P<package>[\w. \t\r]+)\b)?(?P<how>c?import)\b(?P<names>[ \t\r]*\([^)]*\)|[^\n;]*)
        | include\b[ \t\r]*["']+(?P<file>[^"']+)
        | (?:cdef\s+)?extern\s+from\b(?P<code>[^:]*:\s*(?:"{3}.*?"{3}|'{3}.*?'{3})?)
    )""",
    re.M | re.S | re.X,
)


def reach(floor: str) -> set[str]:
    """Return all that a floor may use."""
    return {floor, *(name for below in BELOW[floor] for name in reach(below))}


def floor_of(name: str) -> str | None:
    """Return the floor of a dotted name or a file; None for what is not ours."""
    if "/" in name and name.endswith(".h"):
        return HEADERS.get(Path(name).stem, "unknown")
    parts = re.split("[./]", name)
    if parts[0] != "virtio":
        # a relative name is refused: it hides its floor
        return "bench" if parts[0] in ("bench", "tests") else None if parts[0] else "unknown"
    if len(parts) == 1:
        return "base"
    if parts[1] in BELOW and parts[1] not in FILES:
        return parts[1]
    if parts[1] in EXPORTS:
        return floor_of(EXPORTS[parts[1]])
    return FILES.get(parts[1], "base" if parts[1] in BASE or parts[1].startswith("__") else "unknown")


def names_of_python(text: str) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, "import", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            yield from ((node.lineno, "import", f"{package}.{alias.name}") for alias in node.names)


def names_of_cython(text: str, folder: Path) -> Iterator[tuple[int, str, str]]:
    text = OPAQUE.sub(lambda found: "" if found[0][0] == "#" else found[0].translate(QUIET), text)
    for found in STATEMENT.finditer(text):
        line = len(re.findall(r"[\n\r]", text[: found.start("statement")])) + 1
        if found["how"]:
            package = re.sub(r"\s", "", found["package"] or "")
            for part in found["names"].strip("() \t\r\n").split(","):
                if name := re.sub(r"\bas\b.*|\s", "", part, flags=re.S):
                    yield line, found["how"], f"{package}.{name}" if package else name
        elif found["file"]:
            # Cython looks beside the file, then from the root
            beside = not found["file"].startswith("virtio/")
            yield line, "include", os.path.normpath(folder / found["file"] if beside else found["file"])
        else:
            # the header, and those that C code given there includes
            yield from ((line, "extern", name) for name in re.findall(r"\bvirtio/\w+\.h\b", found["code"]))


@functools.cache
def names_of(path: Path) -> list[tuple[int, str, str]]:
    """Return line, kind and name of each import, cimport, include and header, those in functions too."""
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        return [*names_of_python(text)]
    if path.suffix == ".h":
        included = re.finditer(r'^[ \t]*#[ \t]*include[ \t]*(?:[<"]virtio/|")(\w+\.h)', text, re.M)
        return [(text.count("\n", 0, found.start()) + 1, "extern", f"virtio/{found[1]}") for found in included]
    return [*names_of_cython(text, path.parent.relative_to(ROOT))]


def violations(path: Path, floor: str) -> list[str]:
    allowed = reach(floor)
    return [
        f"{path.relative_to(ROOT)}:{line}: {floor} may not use {name} ({used})"
        for line, _, name in names_of(path)
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
    found += [ROOT / "virtio/include/virtio" / f"{name}.h" for name, of in HEADERS.items() if of == floor]
    return sorted(path for path in found if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h"))


@pytest.mark.parametrize("floor", BELOW)
def test_a_floor_uses_those_below(floor: str) -> None:
    assert sources(floor)
    found = [line for path in sources(floor) for line in violations(path, floor)]
    assert not found, "\n".join(found)


def test_each_folder_is_a_floor() -> None:
    folders = {path.name for path in (ROOT / "virtio").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == {floor for floor in BELOW if (ROOT / "virtio" / floor).is_dir()}
    files = {
        path.stem for path in (ROOT / "virtio").iterdir() if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".pxi")
    }
    assert files == {*FILES, *BASE, "__init__"}
    assert {path.stem for path in (ROOT / "virtio/include").rglob("*.h")} == {*HEADERS}


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
            for line, _, name in names_of(path):
                home = belongs.get(name) or belongs.get(name.rpartition(".")[0])
                assert home in (None, module, belongs.get(module)), f"{path}:{line}: {name} is a part of {home}"


def cimported(path: Path, seen: set[Path]) -> set[Path]:
    """Return seen with the files that a file depends on: its .pxd, what it cimports and includes, and so on."""
    files = [path.with_suffix(".pxd")]
    for _, how, name in names_of(path):
        if how == "include":
            files.append(ROOT / name)
        elif how == "cimport" and name.startswith("virtio."):
            # the last name may be a module, or what one declares
            for home in (ROOT / name.replace(".", "/"), ROOT / name.rpartition(".")[0].replace(".", "/")):
                files += [home.with_suffix(".pxd"), home / "__init__.pxd"]
    for file in files:
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
        ("from ..ports import tap\n", ".py", "offload", 1),
        ("from . import mtu\n", ".py", "offload", 1),
        ("from virtio import *\n", ".py", "offload", 1),
        ("import virtio.nothing\n", ".py", "offload", 1),
        ("from ..ports.tap cimport Tap\n", ".pyx", "offload", 1),
        ("from ..ports import tap\n", ".pyx", "offload", 1),
        ("from .. cimport ports\n", ".pyx", "offload", 1),
        ("cimport virtio.core.lock, virtio.ports.tap\n", ".pyx", "offload", 1),
        ("import a, virtio.net as b\n", ".pyx", "offload", 1),
        ("x = '''\n'''\nfrom virtio.ports.tap \\\n    cimport Tap\n", ".pyx", "offload", 3),
        ("from \\\n    virtio.ports.tap cimport Tap\n", ".pyx", "offload", 1),
        ("from virtio cimport (  # )\n    Region as GuestMemory,\n    Chain,\n)\n", ".pyx", "memory", 1),
        ("x = 1; from virtio.ports.tap cimport Tap\n", ".pyx", "offload", 1),
        ("if x: import virtio.net\n", ".pyx", "offload", 1),
        ("from virtio import *\n", ".pyx", "offload", 1),
        ("from virtio cimport nothing\n", ".pyx", "offload", 1),
        ('include "../ports/x.pxi"\n', ".pyx", "offload", 1),
        ("include 'virtio/ports/x.pxi'\n", ".pxi", "offload", 1),
        ('cdef extern from "virtio/port.h" nogil:\n    pass\n', ".pxd", "offload", 1),
        ('cdef extern from "<virtio/nothing.h>":\n    pass\n', ".pxd", "offload", 1),
        ('cdef extern from *:\n    """\n    #include "virtio/port.h"\n    """\n', ".pyx", "offload", 1),
        ('\n#include "virtio/port.h"\n', ".h", "offload", 2),
    ],
)
def test_a_violation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text, suffix, floor, line) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "virtio" / floor / f"some{suffix}"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (found,) = violations(path, floor)
    assert found.startswith(f"virtio/{floor}/some{suffix}:{line}: {floor} may not use ")


@pytest.mark.parametrize(
    "text",
    [
        '"""Text:\n\nfrom virtio.ports.tap cimport Tap\ncdef extern from "virtio/port.h":\n"""\n',
        "x = 'it\\'s; import virtio.net'  # don't; import virtio.net\n",
        "# include 'virtio/ports/x.pxi'\nimport virtio, virtio.core.lock as net; from virtio import Feature\n",
        "from virtio.core.lock cimport *\nfrom virtio.core import h\ninclude 'x.pxi'\n",
        'cdef extern from "memory.h":\n    pass\ncdef extern from "virtio/net_hdr.h": pass\n',
    ],
)
def test_text_is_not_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (path := tmp_path / "some.pyx").write_text(text)
    assert not violations(path, "offload")


@pytest.mark.parametrize(
    "text",
    [
        "cimport virtio.core.lock, virtio.ports.tap\n",
        "from virtio.ports cimport tap\n",
        "from virtio.ports.tap \\\n    cimport Tap\n",
        "x = 1; from virtio.ports.tap cimport *\n",
        'include "x.pxi"\n',
    ],
)
def test_a_dependency_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (folder := tmp_path / "virtio" / "ports").mkdir(parents=True)
    (folder / "tap.pxd").touch()
    (folder / "x.pxi").write_text("from virtio.ports.tap cimport Tap\n")
    (path := folder / "some.pyx").write_text(text)
    assert folder / "tap.pxd" in cimported(path, set())
