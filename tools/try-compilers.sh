#!/bin/bash
# try-compilers.sh PYTHON [TESTS...]: with each gcc and clang of this machine (CC, or all that PATH has; gcc-14, clang-19
# too), build in build/compiler-NAME without a warning, and run there the tests of kernels, rings and ports, or TESTS.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
shift
. tools/parts.sh
# those that start foreign programs, install the package or are long say nothing about a compiler
foreign='test_(vhost_|net_kernel|kernel|iperf|install|readme|stress|fuzz|cli|top_|net_command|net_supervised|ring_stateful)'
[ $# -gt 0 ] || mapfile -t tests < <(test_files | grep -vE "$foreign")
[ $# -eq 0 ] || tests=("$@")
found=()
[ -z "${CC:-}" ] || found=("$CC")
[ -n "${CC:-}" ] || mapfile -t found < <(compgen -c | grep -xE '(gcc|clang)(-[0-9]+)?' | sort -u)
declare -A seen
failed=
printf '%-10s  %-34s  %-8s  %s\n' compiler version warnings tests
for compiler in "${found[@]}"; do
    version=$("$compiler" --version | head -n 1)
    number=$("$compiler" -dumpfullversion 2> /dev/null || "$compiler" -dumpversion)
    [ -z "${seen[${compiler%%-*} $number]:-}" ] || continue # gcc and gcc-12 are one
    seen[${compiler%%-*} $number]=yes
    copy=build/compiler-${compiler##*/} warnings=some result=failed
    log=$copy.log
    {
        CC=$compiler tools/check-warnings.sh "$python" "$copy" && warnings=none
        cp -r tests bench examples docs tools "$copy"
        (cd "$copy" && PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest -q -p no:cacheprovider "${tests[@]}") && result=ok
    } > "$log" 2>&1 || true
    printf '%-10s  %-34s  %-8s  %s\n' "$compiler" "$number" "$warnings" "$result: $(tail -n 1 "$log")"
    [ "$warnings$result" = noneok ] || { failed=yes && tail -n 25 "$log"; }
done
[ ${#seen[@]} -gt 0 ] || { echo "try-compilers: neither gcc nor clang here" >&2 && exit 1; }
[ -z "$failed" ]
