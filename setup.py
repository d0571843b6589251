"""Builds the extensions: each virtio/*.pyx is one. Everything else about the package is in pyproject.toml.

Environment: VIRTIO_DEBUG=1 turns Cython's checks on and optimisation off; VIRTIO_SANITIZE=address,undefined or
VIRTIO_SANITIZE=thread builds for a sanitizer (see tools/sanitize.sh). Each such variant has its own folder in build/.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("VIRTIO_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("VIRTIO_SANITIZE", "")
SANITIZERS = ("address", "undefined", "address,undefined", "thread")
if SANITIZE and SANITIZE not in SANITIZERS:
    raise SystemExit(f"setup.py: VIRTIO_SANITIZE={SANITIZE} is none of: {' '.join(SANITIZERS)}")

VARIANT = "-".join(filter(None, ["debug" if DEBUG else "", SANITIZE.replace(",", "-")])) or "release"
BUILD = f"build/{VARIANT}"

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
elif DEBUG:
    COMPILE += ["-O0", "-g", "-U_FORTIFY_SOURCE"]
else:
    COMPILE += ["-O3", "-g0"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": not DEBUG,
    "embedsignature": True,
    "freethreading_compatible": True,
}


def write_if_changed(path: Path, text: str) -> str:
    """Keep path's time unless its text changes: it stands for the flags among the files an extension depends on."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


def compiler() -> str:
    """Return the program that is going to be run for cc."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


def extensions() -> list[Any]:
    flags = write_if_changed(Path("build/flags"), f"{VARIANT} {Cython.__version__} {COMPILE} {DIRECTIVES}\n")
    sources = {f"virtio.{path.stem}": path for path in sorted(Path("virtio").glob("*.pyx"))}
    if SANITIZE:  # a module that breaks the rules on purpose: proof that the sanitizer is there and sees it
        sources["sanitize_control"] = Path("tests/sanitize_control.pyx")
    modules = [
        Extension(
            name,
            [str(path)],
            include_dirs=["virtio/include"],
            depends=[flags],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
        )
        for name, path in sources.items()
    ]
    if shutil.which(compiler()) is None:
        return modules  # build_ext says so: to write C that nothing compiles takes a minute
    # the generated C depends on the directives and on Cython too: another variant or version, another folder
    built = cythonize(
        modules,
        include_path=["."],
        build_dir=f"{BUILD}/cython-{Cython.__version__}",
        compiler_directives=DIRECTIVES,
    )
    for module in built:  # Cython knows the .pxd files, and the headers that these name; what those include, we add
        module.depends = sorted({*module.depends, *included(module.depends)})
    return list(built)


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
    """build_ext that says what to install when something is missing."""

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
        super().build_extensions()


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    options={"build": {"build_base": BUILD}, "build_ext": {"parallel": os.cpu_count() or 1}},
)
