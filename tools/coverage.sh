#!/bin/bash
# coverage.sh PYTHON [OPTIONS...]: build the Cython code with line tracing and gcov in a copy of the tree
# (build/coverage), run the tests that need no peer, and print which lines and branches they reach, and the largest holes
# (tools/coverage.py). OPTIONS are pytest's, and may choose other tests: -m root.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
shift
. tools/sanitizers.sh # refresh: the copy
unset PYTHONMALLOC
copy=$PWD/build/coverage
mkdir -p "$copy"
refresh
cd "$copy"
VIRTIO_COVERAGE=1 "$python" setup.py -q build_ext --inplace > build.log 2>&1 || { cat build.log; exit 1; }
find build -name '*.gcda' -delete
export PYTHONPATH=$copy
marks=quick
[ "$(id -u)" != 0 ] || marks='quick or (root and not long)' # TAPs are a part of it where they can be had
# a process for each folder, the largest first, and no pytest-xdist, whose workers end without gcov's figures
# shellcheck disable=SC2016 # $@ and $? are the inner shell's
find tests/*/ -name 'test_*.py' -printf '%h\n' | sort | uniq -c | sort -rn | awk '{print $2} END {print "tests/test_*.py"}' |
    xargs -P "$(nproc)" -I{} sh -c '"$@" {} || [ $? = 5 ]' sh \
        "$python" -m pytest -q -p no:cacheprovider -p no:benchmark -m "$marks" "$@" > tests.log 2>&1 || failed=1
grep -E '^(FAILED|ERROR)|passed|failed' tests.log
"$python" "$OLDPWD/tools/coverage.py" .
exit "${failed:-0}"
