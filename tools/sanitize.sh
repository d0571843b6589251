#!/bin/bash
# sanitize.sh PYTHON: build the extensions for a sanitizer in a copy of the tree, prove that it sees a planted error, run
# the tests. First address and undefined behaviour with all tests, then threads with those marked so.
set -eu
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
. tools/sanitizers.sh
rounds=${VIRTIO_STRESS_BUFFERS:-400000}

echo "sanitize: address, undefined"
prepare address,undefined
control overflow heap-buffer-overflow
control shift 'runtime error'
VIRTIO_STRESS_BUFFERS=$rounds under -m pytest -q -p no:cacheprovider -m 'not install'

echo "sanitize: thread"
prepare thread
control race 'data race'
VIRTIO_STRESS_BUFFERS=$rounds under -m pytest -q -p no:cacheprovider -m 'threads and not races'
echo "sanitize: clean"
