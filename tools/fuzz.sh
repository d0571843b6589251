#!/bin/bash
# fuzz.sh PYTHON: for VIRTIO_FUZZ_SECONDS (600), a third of it each: arbitrary frames and headers through the offload
# kernels, and vhost-user frontends out of their mind, both built for the address and undefined-behaviour sanitizers;
# random walks of the rings through their models.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
. tools/sanitizers.sh
seconds=$((${VIRTIO_FUZZ_SECONDS:-600} / 3))

echo "fuzz: offload kernels, address and undefined-behaviour sanitizers, $seconds s"
prepare address,undefined
control overflow heap-buffer-overflow
VIRTIO_FUZZ_SECONDS=$seconds under -m pytest -s -q -p no:cacheprovider tests/offload/test_fuzz_offloads.py

echo "fuzz: vhost-user frontends, the same sanitizers, $seconds s"
VIRTIO_FUZZ_SECONDS=$seconds under -m pytest -s -q -p no:cacheprovider tests/vhost_user/test_vhost_fuzz.py

echo "fuzz: rings, $seconds s"
unset PYTHONMALLOC
VIRTIO_FUZZ_SECONDS=$seconds "$python" -m pytest -s -q tests/virtqueue/test_ring_stateful.py
