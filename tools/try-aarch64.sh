#!/bin/bash
# try-aarch64.sh PYTHON [TESTS...]: compile the extensions for aarch64 with Debian's cross compiler, and run the tests of the
# offload kernels (or TESTS) on Debian's arm64 Python under QEMU's user-mode emulation. PYTHON is the virtual
# environment's, for Cython and for pytest. Works in build/aarch64. Needs root, or sudo, for apt-get.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
shift
work=build/aarch64 root=$PWD/build/aarch64/root
compiler=aarch64-linux-gnu-gcc
if ! command -v "$compiler" qemu-aarch64-static > /dev/null || ! dpkg --print-foreign-architectures | grep -q arm64; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo dpkg --add-architecture arm64
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
fi
# 3.11 of Debian 12, 3.13 of Debian 13
version=$(apt-cache depends python3:arm64 | sed -nE 's/.*Depends: python(3\.[0-9]+)(:.*)?$/\1/p' | head -n 1)
short=${version/./}
if [ ! -e "$root/.complete" ]; then
    mkdir -p "$root" "$work/debs"
    # what they need, too: libssl3 of 12 is libssl3t64 of 13
    mapfile -t packages < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "python$version:arm64" "libpython$version-dev:arm64" libstdc++6:arm64 |
        grep -E '^[a-z0-9.+-]+(:arm64)?$' | sed -E 's/(:arm64)?$/:arm64/' | sort -u)
    (cd "$work/debs" && for package in "${packages[@]}"; do apt-get download -qq "$package" 2> /dev/null || true; done)
    for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
    touch "$root/.complete"
fi
site=$PWD/$work/site
if [ ! -d "$site/pytest" ]; then
    "$python" -m pip install -q --target "$site" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --only-binary=:all: --python-version "$version" \
        pytest pytest-timeout hypothesis scapy dpkt numpy typing_extensions
fi
copy=$work/tree
rm -rf "$copy"
mkdir -p "$copy"
cp -r setup.py pyproject.toml README.md virtio net tests bench "$copy"
find "$copy" -name "*.so" -delete
cd "$copy"
"$python" -c 'from Cython.Build import cythonize; import ast, re
text = open("setup.py").read()
directives = eval(re.search(r"DIRECTIVES = (\{.*?\n\})", text, re.S)[1], {"DEBUG": False})
cythonize(["virtio/**/*.pyx", "bench/kernels/*.pyx"], include_path=["."], compiler_directives=directives, quiet=True, nthreads=2)'
find virtio bench/kernels -name '*.c' | xargs -P 2 -I{} sh -c '
    so={}; '"$compiler"' -O3 -fno-tree-slp-vectorize -Wall -Wextra -Wno-unused-parameter -shared -fPIC \
        -Ivirtio/include -I"$0/usr/include/python$1" -I"$0/usr/include" {} -o "${so%.c}.cpython-$2-aarch64-linux-gnu.so"' "$root" "$version" "$short"
[ $# -gt 0 ] || set -- tests/offload/test_{checksum,frame_checksum,frame,segment,coalesce,net_hdr,toeplitz}.py
LD_LIBRARY_PATH='' PYTHONPATH=.:$site PYTHONDONTWRITEBYTECODE=1 qemu-aarch64-static -L "$root" "$root/usr/bin/python$version" \
    -c 'import platform, sys, pytest, virtio.offload; print(platform.machine(), virtio.offload.inet_checksum.simd()); sys.exit(pytest.main(sys.argv[1:]))' \
    -q -p no:cacheprovider --hypothesis-profile ci -k 'not guards_guard and not environment_variable and not planted' "$@"  # those start a Python
