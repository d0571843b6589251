#!/bin/bash
# sanitize.sh PYTHON: build the extensions for a sanitizer in a copy of the tree, prove that it sees a planted error, run
# the tests. First address and undefined behaviour with all tests, then threads with the two-thread tests.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
unset VIRTIO_DEBUG
export PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
rounds=${VIRTIO_STRESS_BUFFERS:-400000}

prepare() { # sanitizer: a copy with a build of its own
    copy=build/sanitize-${1//,/-}
    rm -rf "$copy"
    mkdir -p "$copy"
    cp -r setup.py pyproject.toml README.md LICENSE virtio net tests bench "$copy"
    rm -f "$copy"/virtio/*.so
    (cd "$copy" && VIRTIO_SANITIZE=$1 "$python" setup.py -q build_ext --inplace > build.log 2>&1) || { cat "$copy/build.log"; exit 1; }
}

under() { # run a Python under the sanitizer's run-time library
    # no address randomisation: gcc 12's thread sanitizer does not know all layouts of newer kernels
    (cd "$copy" && LD_PRELOAD=$preload PYTHONPATH=. setarch "$(uname -m)" -R "$python" "$@")
}

control() { # the planted error must be reported: a check that cannot fail is none
    if under -c "import sanitize_control; sanitize_control.$1()" > "$copy/control.log" 2>&1 || ! grep -q "$2" "$copy/control.log"; then
        cat "$copy/control.log"
        echo "sanitize: the planted error ($1) was not reported" >&2
        exit 1
    fi
    echo "sanitize: planted error found ($1: $2)"
}

library() { gcc -print-file-name="$1"; }

echo "sanitize: address, undefined"
prepare address,undefined
preload="$(library libasan.so) $(library libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
control overflow heap-buffer-overflow
control shift 'runtime error'
VIRTIO_STRESS_BUFFERS=$rounds under -m pytest -q -p no:cacheprovider -m 'not install'

echo "sanitize: thread"
prepare thread
preload=$(library libtsan.so)
export TSAN_OPTIONS="halt_on_error=1 exitcode=66"
control race 'data race'
VIRTIO_STRESS_BUFFERS=$rounds under -m pytest -q -p no:cacheprovider -m 'threads and not races'
echo "sanitize: clean"
