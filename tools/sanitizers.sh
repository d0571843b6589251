# sanitizers.sh, to be sourced from the root with $python set: builds for a sanitizer in a copy of the tree, and runs
# Python under it.
# shellcheck shell=bash
unset VIRTIO_DEBUG
export PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS="halt_on_error=1 exitcode=66"

library() { gcc -print-file-name="$1"; }

prepare() { # sanitizer: a copy with a build of its own, in $copy, and the run-time libraries for it in $preload
    copy=build/sanitize-${1//,/-}
    rm -rf "$copy"
    mkdir -p "$copy"
    cp -r setup.py pyproject.toml README.md LICENSE virtio net tests bench examples "$copy"
    rm -f "$copy"/virtio/*.so
    (cd "$copy" && VIRTIO_SANITIZE=$1 "$python" setup.py -q build_ext --inplace > build.log 2>&1) || { cat "$copy/build.log"; exit 1; }
    case $1 in
    thread) preload=$(library libtsan.so) ;;
    *) preload="$(library libasan.so) $(library libubsan.so)" ;;
    esac
}

under() { # run a Python under the sanitizer's run-time library
    # no address randomisation: gcc 12's thread sanitizer does not know all layouts of newer kernels
    (cd "$copy" && LD_PRELOAD=$preload PYTHONPATH=. setarch "$(uname -m)" -R "$python" "$@")
}

control() { # the planted error must be reported: a check that cannot fail is none
    if under -c "import sanitize_control; sanitize_control.$1()" > "$copy/control.log" 2>&1 || ! grep -q "$2" "$copy/control.log"; then
        cat "$copy/control.log"
        echo "the planted error ($1) was not reported by the sanitizer" >&2
        exit 1
    fi
    echo "planted error found ($1: $2)"
}
