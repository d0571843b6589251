#!/bin/bash
# lint.sh BIN: ruff, cython-lint, mypy and stubtest (the .pyi beside what they describe) from the folder BIN, then a build
# in which our own code may cause no warning.
set -eu
cd "$(dirname "$0")/.."
bin=$(cd "$1" && pwd)
"$bin/ruff" check --no-cache . # its cache does not know that other files of the tree come and go
"$bin/ruff" format --check .
PATH="$bin:$PATH" "$bin/cython-lint" virtio bench tests virtio/*/*.pxi
"$bin/mypy" -p virtio
# not: which classes are layouts of their own (PEP 800), which says nothing to callers
"$bin/stubtest" --concise --ignore-disjoint-bases --allowlist tools/stubtest-allow.txt virtio
tools/check-warnings.sh "$bin/python"
