#!/bin/bash
# try-pythons.sh: on each Python 3.11, 3.12 and 3.13 found (PATH, or pyenv's versions), in fresh virtual environments:
# pip install . with the README's example from another folder, then pip install -e '.[dev]' and the quick tests.
set -u
cd "$(dirname "$0")/.."
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 found=0
printf '%-10s  %-8s  %-8s  %-10s  %s\n' python version install editable tests
for version in 3.11 3.12 3.13; do
    python=
    # on PATH there may be only pyenv's shim, which does not run unless that version is the chosen one
    for candidate in "$(command -v "python$version")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version."*/bin/python; do
        if "$candidate" -c '' 2> /dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        printf '%-10s  %s\n' "$version" "not here"
        continue
    fi
    found=$((found + 1))
    full=$("$python" -c 'import platform; print(platform.python_version())')
    install=failed editable=failed tests=failed
    copy="$work/$version"
    mkdir "$copy"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy" 2> /dev/null
    log="$work/$version.log"
    {
        "$python" -m venv "$work/a$version" && "$work/a$version/bin/pip" install -q "$copy" &&
            (cd "$work" && sed -n '/^```python$/,/^```$/p' "$root/README.md" | grep -v '^```' | "$work/a$version/bin/python" - | grep -q PING) && install=ok
        "$python" -m venv "$work/b$version" && (cd "$copy" && "$work/b$version/bin/pip" install -q -e '.[dev]') && editable=ok
        (cd "$copy" && VIRTIO_STRESS_BUFFERS=200000 "$work/b$version/bin/python" -m pytest -q -m 'not install' \
            --deselect tests/virtqueue/test_ring_stateful.py) && tests=ok
    } > "$log" 2>&1
    printf '%-10s  %-8s  %-8s  %-10s  %s\n' "$version" "$full" "$install" "$editable" "$tests"
    if [ "$install$editable$tests" != okokok ]; then
        failed=1
        tail -n 25 "$log"
    fi
done
[ "$found" -gt 0 ] || { echo "try-pythons: no Python 3.11 to 3.13 here" >&2; exit 1; }
exit $failed
