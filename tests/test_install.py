"""The package as users get it: a wheel, installed elsewhere, with clients in Cython and C built and run against it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from peers import need_peer

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
CLIENTS = Path(__file__).parent / "clients"

SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
import virtio
include = [virtio.get_include()]
setup(name="clients", ext_modules=cythonize([
    Extension("cython_client", ["cython_client.pyx"], include_dirs=include),
    Extension("offload_client", ["offload_client.pyx"], include_dirs=include),
    Extension("c_client", ["c_client.c"], include_dirs=include, extra_compile_args=["-Wall", "-Wextra", "-Werror"]),
]))
"""

USE = r"""
import sys
import cython_client, c_client, offload_client
from virtio import *
from virtio import offload
for packed in (False, True):
    memory = GuestMemory.allocate(1 << 20, 0x100000)
    layout = QueueLayout.packed(100, 0x100000) if packed else QueueLayout.legacy(128, 0x100000)
    features = Feature.RING_PACKED if packed else Feature(0)
    driver = DriverQueue(memory, layout, features=features)
    device = DeviceQueue(memory, layout, features=features)
    assert cython_client.through(driver, device, 0x180000, 1000) == (1000, sum(range(1000)))
    assert memory.read(0x180000, 1) == b"*"
    assert c_client.through(driver, device, memory, 0x190000, 1000) == (1000, sum(range(1000)), ord("c"))
    assert memory.read(0x190000, 8) == b"c" * 8
    assert driver.counters()["completions"] == 2000
    try:
        c_client.through(device, driver, memory, 0x190000, 1)
    except TypeError as error:
        assert "DriverQueue" in str(error)
    else:
        sys.exit("a device end was taken for a driver end")
head = bytes(12) + b"\x08\0\x45\0\x03\xe8" + bytes(4) + b"\x40\x06" + bytes(2) + bytes(range(8))
frame = bytearray(head + bytes(12) + b"\x50\x10" + bytes(6 + 960))
assert offload.fill_checksums(frame)[:2] == (offload.Verdict.GOOD,) * 2
key = bytes(range(40))
found = offload_client.through(bytes(frame), key, 500)
assert found == {
    "checksum": offload.checksum(frame), "verdicts": (1, 1), "fault": 0,
    "segments": offload.segment(frame, 500).packets(), "merged": (2, len(frame)),
    "hash": offload.Toeplitz(key).hash_frame(frame)[0],
}, found
print("clients ran")
"""


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def take_along_what_is_built(source: Path) -> None:
    """Spare the wheel two minutes of compiling: what the tests run on was compiled from the same files.

    All times are kept but for a shift, so what is older than its source is compiled all the same. The shift is for
    Cython, on whose own files C depends: it is often installed after it was used.
    """
    here, there = ROOT / "build", source / "build"
    if not (here / "flags").exists():
        return
    there.mkdir()
    shutil.copy2(here / "flags", there)
    for generated in (here / "release").glob("cython-*"):
        shutil.copytree(generated, there / "release" / generated.name)
    built = there / "release" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "virtio"
    for module in (ROOT / "virtio").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
        copy = built / module.relative_to(ROOT / "virtio")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, copy)
    shift = time.time() - min(path.stat().st_mtime for path in there.rglob("*") if path.is_file())
    for path in source.rglob("*"):
        when = path.stat().st_mtime + shift
        os.utime(path, (when, when))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_peer("gcc", "gcc")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    for name in ("virtio", "net"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    take_along_what_is_built(source)
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."],
        source,
    )
    return next(folder.glob("virtio-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's python with the wheel, and Cython and setuptools from ours, in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    python = folder / "venv" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], folder)
    site = folder / "tools"
    site.mkdir()
    purelib = Path(sysconfig.get_path("purelib"))
    for pattern in ("Cython", "cython.py", "pyximport", "setuptools", "_distutils_hack"):
        for found in purelib.glob(pattern):
            (site / found.name).symlink_to(found)
    return python


def test_wheel_holds_what_clients_need(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "__init__.pxd",
        "_ring.pxd",
        "virtqueue/driver_queue.pyi",
        "include/virtio/queue.h",
        "net/__init__.py",
    ):
        assert f"virtio/{name}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"virtio"}
    assert wheel.stat().st_size < 3_000_000


def test_import_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = "import virtio, virtio.net, os; assert os.path.exists(virtio.get_include() + '/virtio/queue.h'); print('ok')"
    assert run([str(installed), "-c", code], tmp_path) == "ok\n"


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    assert '"verified": true' in run([str(installed.parent / "virtio"), "demo", "--json", "--chains", "1000"], tmp_path)


def test_cython_and_c_clients(installed: Path, tmp_path: Path) -> None:
    for name in ("cython_client.pyx", "offload_client.pyx", "c_client.c"):
        shutil.copy(CLIENTS / name, tmp_path)
    (tmp_path / "setup.py").write_text(SETUP)
    tools = str(installed.parent.parent.parent / "tools")
    run([str(installed), "setup.py", "-q", "build_ext", "--inplace"], tmp_path, PYTHONPATH=tools)
    assert run([str(installed), "-c", USE], tmp_path) == "clients ran\n"


def test_typed_client(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="pip install mypy")
    client = str(CLIENTS / "typed.py")
    checked = ["-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={tmp_path}", client]
    assert run([sys.executable, *checked], ROOT) == ""
    assert run([sys.executable, client], ROOT, PYTHONPATH=str(ROOT)).strip() in ("scalar", "avx2", "avx512")


def test_unbuilt_tree_says_what_to_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "virtio", tmp_path / "virtio", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import virtio"],  # -S: without our own, editable installation
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"run: pip install -e {tmp_path}" in done.stderr.splitlines()[-1]


def test_missing_compiler_says_what_to_run(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("virtio", "net"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "CC": "no-such-compiler"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "apt-get install gcc" in done.stderr


def test_net_folder_is_no_package_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", "import net"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import virtio.net" in done.stderr.splitlines()[-1]


def test_a_build_in_place_removes_extensions_without_source(tmp_path: Path) -> None:
    """A module that has moved leaves its extension, and Python would import it still."""
    need_peer("gcc", "gcc")
    shutil.copy(ROOT / "setup.py", tmp_path)
    suffix = ".cpython-311-x86_64-linux-gnu.so"
    stale = [f"virtio/gone{suffix}", f"virtio/old/_gone{suffix}", f"bench/kernels/gone{suffix}"]
    others = ["virtio/plain.so", f"bench/gone{suffix}", f"build/gone{suffix}", f"net/gone{suffix}"]
    current = ["virtio/old/kept.pyx", f"virtio/old/kept{suffix}", "virtio/__init__.py", "virtio/old/__init__.py"]
    for name in (*stale, *others, *current):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "virtio" / "net").symlink_to("../net")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split()[1].rstrip(":") for line in done.stderr.splitlines() if line.startswith("removed ")] == stale
    assert not any((tmp_path / name).exists() for name in stale)
    assert all((tmp_path / name).exists() for name in (*others, *current))


def test_an_edit_rebuilds_what_depends_on_it(tmp_path: Path) -> None:
    """A contract that is edited, or newly used, rebuilds its users. A module that fails leaves the others current."""
    need_peer("gcc", "gcc")
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "virtio").mkdir()

    def rebuilt(name: str, text: str, fails: bool = False) -> list[str]:
        """Return which modules are compiled when the file has this text."""
        time.sleep(0.01)  # file times
        (tmp_path / "virtio" / name).write_text(text)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stderr
        return sorted(line.split(".")[-1] for line in done.stderr.splitlines() if line.startswith("["))

    (tmp_path / "virtio" / "contract.pxd").write_text("cdef enum:\n    SIZE = 4\n")
    (tmp_path / "virtio" / "between.pxd").write_text("from virtio.contract cimport SIZE\n")
    (tmp_path / "virtio" / "__init__.py").touch()
    (tmp_path / "virtio" / "other.pyx").touch()
    assert rebuilt("user.pyx", "from virtio.between cimport SIZE\nsize = SIZE\n") == ["other", "user"]
    assert rebuilt("other.pyx", "") == ["other"]
    assert rebuilt("contract.pxd", "cdef enum:\n    SIZE = 5\n") == ["user"]
    assert rebuilt("other.pyx", "from virtio.contract cimport SIZE\n") == ["other"]
    assert rebuilt("contract.pxd", "cdef enum:\n    SIZE = 6\n") == ["other", "user"]
    assert rebuilt("other.pyx", "from virtio.contract cimport\n", fails=True) == []
    assert rebuilt("other.pyx", "from virtio.contract cimport SIZE\n") == ["other"]
    assert rebuilt("third.pyx", "") == ["third"]
    found = run([sys.executable, "-c", "from virtio import user; print(user.size)"], tmp_path)
    assert found == "6\n"


def test_an_editable_install_compiles_nothing_that_is_built(tmp_path: Path) -> None:
    """`make build` compiles, and pip takes that: of itself it would compile all in a folder of its own."""
    need_peer("gcc", "gcc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("virtio/__init__.py", "virtio/one.pyx", "net/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "virtio" / "__init__.py").write_text('__version__ = "0"\n')
    (tmp_path / "virtio" / "net").symlink_to("../net")
    run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tmp_path)
    editable = "from setuptools import build_meta; build_meta.build_editable('.')"
    run([sys.executable, "-c", editable], tmp_path, CC="false")
