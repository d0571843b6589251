#!/bin/bash
# lint.sh BIN: ruff, cython-lint and mypy from the folder BIN, then a build in which our own code may cause no warning.
set -eu
cd "$(dirname "$0")/.."
bin=$(cd "$1" && pwd)
"$bin/ruff" check --no-cache . # its cache does not know that other files of the tree come and go
"$bin/ruff" format --check .
PATH="$bin:$PATH" "$bin/cython-lint" virtio tests
# mypy must see the package as it is installed: net/ as virtio.net
rm -rf build/mypy
mkdir -p build/mypy/virtio
ln -s "$PWD"/virtio/* "$PWD/net" build/mypy/virtio
MYPYPATH=build/mypy "$bin/mypy" -p virtio
tools/check-warnings.sh "$bin/python"
