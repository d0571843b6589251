"""Builds the extensions: each .pyx below virtio/ is one. Everything else about the package is in pyproject.toml.

Environment: VIRTIO_DEBUG=1 turns Cython's checks on and optimisation off; VIRTIO_SANITIZE=address,undefined or
VIRTIO_SANITIZE=thread builds for a sanitizer (see tools/sanitize.sh); VIRTIO_COVERAGE=1 counts lines and branches (see
tools/coverage.sh). Each such variant has its own folder in build/.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import Cython
from Cython.Build import cythonize
from Cython.Build.Dependencies import create_dependency_tree
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("VIRTIO_DEBUG", "") not in ("", "0")
COVERAGE = os.environ.get("VIRTIO_COVERAGE", "") not in ("", "0")
SANITIZE = os.environ.get("VIRTIO_SANITIZE", "")
SANITIZERS = ("address", "undefined", "address,undefined", "thread")
if SANITIZE and SANITIZE not in SANITIZERS:
    raise SystemExit(f"setup.py: VIRTIO_SANITIZE={SANITIZE} is none of: {' '.join(SANITIZERS)}")

KINDS = ["debug" if DEBUG else "", "coverage" if COVERAGE else "", SANITIZE.replace(",", "-")]
VARIANT = "-".join(filter(None, KINDS)) or "release"
BUILD = f"build/{VARIANT}"
CPUS = os.cpu_count() or 1

COMPILE = [
    "-Wall",
    "-Wextra",
    # gcc 12 joins the stores of neighbouring ring words into one vector store: loads of the words then wait for it
    "-fno-tree-slp-vectorize",
]
LINK = []
if SANITIZE:
    COMPILE += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}", "-U_FORTIFY_SOURCE"]
    LINK += [f"-fsanitize={SANITIZE}"]
elif COVERAGE:
    COMPILE += ["-O0", "-g0", "--coverage", "-DCYTHON_TRACE=1"]
    LINK += ["--coverage"]
elif DEBUG:
    COMPILE += ["-O0", "-g", "-U_FORTIFY_SOURCE"]
else:
    COMPILE += ["-O3", "-g0"]

# What some extensions have beside, in a release.
OPTIONS = {
    # a fifth less to compile: no function of these runs for each frame, but beside a system call or Python
    r"virtio\.(_capi|_ring|cli\.|memory\.|event\.(notifier|relay)|ports\.(pcap|tap)$|virtqueue\.driver_state)": ["-O2"],
    # an inner loop over the end of a cache line takes up to a third longer, and the linker says which one does
    r"virtio\.offload\.(inet_checksum|crc)$": ["-falign-functions=64", "-falign-loops=64"],
}

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": not DEBUG,
    "embedsignature": True,
    "auto_pickle": False,  # no state in C could be pickled; methods that say so are a tenth of the code
    "freethreading_compatible": True,
}
if COVERAGE:
    DIRECTIVES["linetrace"] = True  # a call before the code of each line, which tools/coverage.py looks at


def write_if_changed(path: Path, text: str) -> str:
    """Keep path's time unless its text changes: it stands for the flags among the files an extension depends on."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


FOLDERS = ("virtio", "bench/kernels")  # the second: of benchmarks and tests


def sources(everything: bool) -> dict[str, Path]:
    """Return the .pyx of each extension by the extension's name; everything: those of benchmarks and tests as well."""
    folders = FOLDERS if everything else FOLDERS[:1]
    found = {
        ".".join(path.with_suffix("").parts): path for name in folders for path in sorted(Path(name).rglob("*.pyx"))
    }
    if SANITIZE:  # a module that breaks the rules on purpose: proof that the sanitizer is there and sees it
        found["sanitize_control"] = Path("tests/support/sanitize_control.pyx")
    return found


def options_of(name: str) -> list[str]:
    more = [options for pattern, options in OPTIONS.items() if re.match(pattern, name)] if VARIANT == "release" else []
    return sum(more, COMPILE)


def extensions(everything: bool) -> list[Extension]:
    # profilers want the names of static functions, which are a twelfth of a wheel
    link = LINK if everything or VARIANT != "release" else [*LINK, "-s"]
    return [
        Extension(
            name,
            [str(path)],
            include_dirs=["virtio/include"],
            extra_compile_args=options_of(name),
            extra_link_args=link,
        )
        for name, path in sources(everything).items()
    ]


def remove_stale() -> None:
    """Remove each extension whose .pyx has moved or gone: Python would import it still."""
    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*.cpython-*.so")):
            if not path.with_name(path.name.split(".")[0] + ".pyx").exists():
                path.unlink()
                print(f"removed {path}: it has no .pyx any more", file=sys.stderr)


def translate(modules: list[Extension], flags: str) -> None:
    """Write the C of each module of which a file is newer, on all CPUs; set its sources and the files it depends on."""
    where = Path(BUILD, f"cython-{Cython.__version__}")
    directives = write_if_changed(where / "directives", f"{DIRECTIVES}\n")
    # To find what all modules cimport takes Cython 3 s. It can change only with one of the files, or with the .pxd
    # files that there are.
    names = sorted(str(path) for folder in FOLDERS for path in Path(folder).rglob("*.pxd"))
    record = where / "depends.json"
    try:
        saved = json.loads(record.read_text())
    except (OSError, ValueError):  # none, or a build that was killed
        saved = {}
    known = saved["depends"] if saved.get("names") == names else {}
    old = []
    for module in modules:
        depends = known.get(module.name)
        c = where / Path(module.sources[0]).with_suffix(".c")
        if depends and is_newer(c, [directives, *depends]):
            module.sources, module.depends = [str(c)], [flags, *depends]
        else:
            old.append(module)
            known.pop(module.name, None)
    if not old:
        return
    record.write_text(json.dumps({"names": names, "depends": known}))  # if one fails, the others stay
    built = cythonize(
        [Extension(module.name, list(module.sources), include_dirs=module.include_dirs) for module in old],
        include_path=["."],
        build_dir=str(where),
        compiler_directives=DIRECTIVES,
        nthreads=CPUS,
        force=True,
        quiet=True,
    )
    tree = create_dependency_tree()
    for module, done in zip(old, built, strict=True):
        # Cython gives the headers that .pxd files name; what those include, we add
        cimported = {os.path.relpath(path) for path in tree.all_dependencies(module.sources[0])}
        ours = {path for path in cimported if path.startswith(FOLDERS)}
        known[module.name] = sorted({*module.sources, *ours, *done.depends, *included(done.depends)})
        module.sources, module.depends = done.sources, [flags, *known[module.name]]
    record.write_text(json.dumps({"names": names, "depends": known}))


def is_newer(target: Path, paths: list[str]) -> bool:
    """Say whether target is there, and newer than all paths."""
    if not target.exists() or not all(Path(path).exists() for path in paths):
        return False
    return max(Path(path).stat().st_mtime for path in paths) < target.stat().st_mtime


def included(paths: list[str]) -> set[str]:
    """Return our headers among paths, and those that they include."""
    found: set[str] = set()
    todo = [path for path in paths if path.endswith(".h") and Path(path).exists()]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'#include "(virtio/\w+\.h)"', Path(path).read_text())
            todo += [f"virtio/include/{name}" for name in names]
    return found


class BuildExtensions(build_ext):
    """build_ext that translates in parallel, shows how far it is, and says what to install if something is missing.

    What benchmarks and tests alone need is built where it stays in the tree (``--inplace``, editable), not for a wheel.
    """

    def finalize_options(self) -> None:
        self.stays = bool(self.inplace or getattr(self, "editable_mode", False))  # run() clears inplace for a while
        if self.stays:
            self.distribution.ext_modules = extensions(everything=True)
        super().finalize_options()
        if self.stays:  # pip would have all compiled in a folder of its own, each time
            where = f"{self.plat_name}-{sys.implementation.cache_tag}"
            self.build_lib, self.build_temp = f"{BUILD}/lib.{where}", f"{BUILD}/temp.{where}"

    def run(self) -> None:
        if self.stays:
            remove_stale()
        super().run()

    def build_extensions(self) -> None:
        program = self.compiler.compiler[0]
        if shutil.which(program) is None:
            raise SystemExit(
                f"virtio: no C compiler ({program} is not on PATH)\n"
                "  run: apt-get install gcc libc6-dev    (Debian; elsewhere: install a C compiler, or set CC)"
            )
        if not any((Path(folder) / "Python.h").exists() for folder in self.compiler.include_dirs):
            raise SystemExit(
                f"virtio: no Python headers (no Python.h in {sysconfig.get_path('include')})\n"
                "  run: apt-get install python3-dev      (Debian's python3; elsewhere: the headers of this Python)"
            )
        stamp = Path(BUILD, f"built{sysconfig.get_config_var('EXT_SUFFIX')}")
        flags = write_if_changed(
            Path("build/flags"), f"{VARIANT} {Cython.__version__} {COMPILE} {OPTIONS} {DIRECTIVES}\n"
        )
        began = time.time()  # behind the flags, which may have been written just now
        if self.stays and not self.force and self.is_current(stamp, flags):
            return
        self.began, self.built = time.monotonic(), 0
        translate(self.extensions, flags)
        self.stale = {module.name for module in self.extensions if self.is_stale(module)}
        # the longest first: none is left alone at the end
        self.extensions.sort(key=lambda module: -Path(module.sources[0]).stat().st_size)
        super().build_extensions()
        if self.stays:
            stamp.touch()
            os.utime(stamp, (began, began))

    def is_current(self, stamp: Path, flags: str) -> bool:
        """Say whether no source is newer than the last build in place: faster than to ask Cython for each module."""
        targets = [Path(self.get_ext_fullpath(module.name)) for module in self.extensions]
        if not stamp.exists() or not all(target.exists() for target in targets):
            return False
        inputs = [Path(flags), Path(__file__)]
        for folder in (*FOLDERS, "tests"):
            inputs += (path for suffix in ("pyx", "pxd", "pxi", "h") for path in Path(folder).rglob(f"*.{suffix}"))
        return max(path.stat().st_mtime for path in inputs) < stamp.stat().st_mtime

    def is_stale(self, module: Extension) -> bool:
        target = Path(self.get_ext_fullpath(module.name))
        return bool(self.force) or not is_newer(target, [*module.sources, *module.depends])

    def build_extension(self, ext: Extension) -> None:
        super().build_extension(ext)
        if ext.name in self.stale:
            self.built += 1
            elapsed = time.monotonic() - self.began
            print(f"[{self.built:3} of {len(self.stale)}, {elapsed:4.0f} s]  {ext.name}", file=sys.stderr, flush=True)


setup(
    ext_modules=extensions(everything=False),
    cmdclass={"build_ext": BuildExtensions},
    options={"build": {"build_base": BUILD}, "build_ext": {"parallel": CPUS}},
)
