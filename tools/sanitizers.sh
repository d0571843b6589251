# sanitizers.sh, to be sourced from the root with $python set: builds for a sanitizer in a copy of the tree, and runs
# Python under it.
# shellcheck shell=bash
unset VIRTIO_DEBUG
export PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1 exitcode=66}
tree=(setup.py pyproject.toml README.md LICENSE virtio net tests bench examples)

library() { gcc -print-file-name="$1"; }

prepare() { # sanitizer: a copy of the tree with a build of its own, in $copy; one that is up to date is used again
    copy=$PWD/build/sanitize-${1//,/-}
    mkdir -p "$copy"
    exec 8> "$copy/lock-build" 9> "$copy/lock-tests"
    flock 8 # one looks and builds at a time, while no test of others runs in the same copy
    if [ "$(stamp "$1")" != "$(cat "$copy/built" 2> /dev/null)" ]; then
        flock 9
        rm -f "$copy/built"
        refresh
        wrap "$1"
        (cd "$copy" && VIRTIO_SANITIZE=$1 "$python" setup.py -q build_ext --inplace > build.log 2>&1) || { cat "$copy/build.log"; exit 1; }
        stamp "$1" > "$copy/built"
    fi
    flock -s 9
    exec 8>&-
}

stamp() { # sanitizer: all that a build and its tests come from, as one number
    { echo "$1 $python"; "$python" -VV; ${CC:-cc} --version; sources | sort | tr '\n' '\0' | xargs -0 sha256sum; sha256sum tools/sanitizers.sh tools/sanitized/*; } | sha256sum
}

sources() { find "${tree[@]}" -type f ! -name '*.so' ! -path '*/__pycache__/*'; }

refresh() { # bring the copy up to date, file by file: the build compares times
    local file
    (cd "$copy" && sources 2> /dev/null) | while read -r file; do
        [ -e "$file" ] || rm -f "$copy/$file" "${copy:?}/${file%.pyx}".*.so
    done
    sources | while read -r file; do
        cmp -s "$file" "$copy/$file" || { mkdir -p "$copy/$(dirname "$file")" && cp "$file" "$copy/$file"; }
    done
    ln -sfn ../net "$copy/virtio/net" # virtio.net, as the package is installed
}

wrap() { # sanitizer: write $copy/python, which runs Python under it
    local preload
    case $1 in
    thread) preload=$(library libtsan.so) ;;
    *) preload="$(library libasan.so) $(library libubsan.so)" ;;
    esac
    cp tools/sanitized/sitecustomize.py "$copy"
    # no address randomisation: gcc 12's thread sanitizer does not know all layouts of newer kernels
    cat > "$copy/python" << END
#!/bin/sh
exec setarch $(uname -m) -R env LD_PRELOAD="$preload" PYTHONPATH="$copy\${PYTHONPATH:+:\$PYTHONPATH}" \\
    VIRTIO_SANITIZED=$1 VIRTIO_SANITIZED_PYTHON="$copy/python" "$python" "\$@"
END
    chmod +x "$copy/python"
}

under() { # run a Python under the sanitizer, in the copy
    (cd "$copy" && ./python "$@" 9>&-)
}

control() { # planted error, report: the sanitizer must find it, in a Python that ours starts, too
    local start="import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    local said
    if said=$(under -c "$start" "import sanitize_control; sanitize_control.$1()" 2>&1) || ! grep -q "$2" <<< "$said"; then
        echo "$said"
        echo "the planted error ($1) was not reported by the sanitizer" >&2
        exit 1
    fi
    echo "planted error found ($1: $2)"
    if under -c "import subprocess; subprocess.run(['env'])" | grep LD_PRELOAD; then
        echo "a program that Python starts runs under the sanitizer" >&2
        exit 1
    fi
}
