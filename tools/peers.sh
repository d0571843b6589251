#!/bin/bash
# peers.sh: install Debian's packages that tests, benchmarks and sanitizers want. Needs root, or sudo.
#   gcc libc6-dev python3-dev make  the build            util-linux  taskset, setarch
#   xz-utils                        unpacking ringtest's source (make bench fetches the kernel's source itself)
#   libasan8 libubsan1 libtsan2     the sanitizers' run-time libraries
#   qemu-system-x86 lz4 zstd busybox-static ethtool  Linux guests; their kernels are fetched by the tests themselves
#   iproute2                        namespaces, in which the kernel is a peer and an oracle
#   valgrind                        counts of instructions (python -m bench.instructions)
#   tcpdump iperf3 iputils-ping curl  real traffic, and the capture of it
#   libdpdk-dev pkg-config dpdk-dev  DPDK: the offloads are measured beside it; dpdk-testpmd drives our devices
set -eu
packages="gcc libc6-dev python3-dev python3-venv make util-linux xz-utils libasan8 libubsan1 libtsan2
    busybox-static ethtool kmod lz4 zstd qemu-system-x86 iproute2 tcpdump iperf3 iputils-ping curl libdpdk-dev pkg-config dpdk-dev
    valgrind"
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "peers: all installed"
    exit 0
fi
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing
