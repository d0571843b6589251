#!/bin/bash
# check-warnings.sh PYTHON: compile everything anew with -Wall -Wextra; fail on any warning, of Cython or of gcc.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r setup.py pyproject.toml README.md LICENSE virtio net "$folder"
rm -f "$folder"/virtio/*.so
(cd "$folder" && "$1" setup.py -q build_ext --inplace) > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
# setuptools' own notes about Python settings are not about our code
if grep -E 'warning' "$folder/log" | grep -vE 'SetuptoolsDeprecation|setuptools'; then
    echo "check-warnings: the build warns (see above)" >&2
    exit 1
fi
echo "check-warnings: no warning under -Wall -Wextra"
