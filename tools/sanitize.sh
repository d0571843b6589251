#!/bin/bash
# sanitize.sh PYTHON [PART]: run the tests of a part under its sanitizer, or of all parts. A build that is up to date is
# used again; before the tests the sanitizer must find a planted error. Each part prints one line when it begins and one
# when it ends, and writes build/sanitize/PART.log.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
. tools/sanitizers.sh
. tools/parts.sh
export VIRTIO_STRESS_BUFFERS=${VIRTIO_STRESS_BUFFERS:-400000}
side_by_side=(address-kernels address-rings address-devices) # of one thread each, mostly
alone=(address-vhost address-network thread)                 # peers that poll, and tests of threads, take all CPUs

build() { # part: its sanitizer's build, proven
    case $1 in
    address-*)
        prepare address,undefined
        control overflow heap-buffer-overflow
        control shift 'runtime error'
        ;;
    thread)
        prepare thread
        control race 'data race'
        ;;
    esac
}

check() { # part: run its tests
    local file files=()
    build "$1"
    if [ "$1" = thread ]; then
        under -m pytest -q -p no:cacheprovider -m 'threads and not races'
    else
        for file in $(test_files); do
            [ "address-$(part_of "$file")" != "$1" ] || files+=("$file")
        done
        under -m pytest -q -p no:cacheprovider -m 'not install' "${files[@]}"
    fi
}

if [ $# -gt 1 ]; then
    [[ " ${side_by_side[*]} ${alone[*]} " == *" $2 "* ]] || { echo "no part $2: ${side_by_side[*]} ${alone[*]}" >&2; exit 2; }
    part=$2 log=build/sanitize/$2.log word=FAILED
    mkdir -p build/sanitize
    echo "sanitize-$part: begins, see $log"
    exec 3>&1 > "$log" 2>&1
    trap 'exit 1' INT TERM
    trap 'echo "sanitize-$part: $word after $SECONDS s, see $log: $(tail -n 1 "$log")" >&3' EXIT
    check "$part"
    word=clean
    exit
fi

failed=0
printf '%s\n' "${side_by_side[@]}" | xargs -P "$(nproc)" -I{} "$0" "$python" {} || failed=1
for name in "${alone[@]}"; do
    "$0" "$python" "$name" || failed=1
done
[ $failed = 0 ] || { echo "sanitize: FAILED, see the lines above"; exit 1; }
echo "sanitize: clean"
