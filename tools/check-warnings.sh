#!/bin/bash
# check-warnings.sh PYTHON [FOLDER]: compile everything with -Wall -Wextra and the compiler in CC, in a new FOLDER (or one
# that goes afterwards); fail on any warning, of Cython or of the compiler.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
if [ $# -gt 1 ]; then
    folder=$2
    rm -rf "$folder"
    mkdir -p "$folder"
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
cp -r setup.py pyproject.toml README.md LICENSE virtio net bench "$folder"
find "$folder" -name "*.so" -delete
(cd "$folder" && "$python" setup.py -q build_ext --inplace) > "$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
# setuptools' own notes about Python settings, and flags that Python was built with and another compiler does not know,
# are not about our code
if grep -E 'warning:|Warning' "$folder/log" | grep -vE 'SetuptoolsDeprecation|setuptools|-Wignored-optimization-argument'; then
    echo "check-warnings: the build warns (see above)" >&2
    exit 1
fi
echo "check-warnings: no warning under -Wall -Wextra (${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC"))')})"
