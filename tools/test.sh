#!/bin/bash
# test.sh PYTHON [OPTIONS...]: run all tests, with options of pytest: first those of one thread, mostly, side by side on
# all CPUs; then those with peers that poll, alone.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
. tools/parts.sh
side_by_side=() alone=()
for file in $(test_files); do
    case $(part_of "$file") in
    vhost | network) alone+=("$file") ;;
    *) side_by_side+=("$file") ;;
    esac
done
failed=0
"$python" -m pytest -q -n "$(nproc)" --dist loadfile -p no:benchmark "$@" "${side_by_side[@]}" || failed=1
"$python" -m pytest -q "$@" "${alone[@]}" || failed=1
exit $failed
