#!/bin/bash
# venv.sh PYTHON FOLDER: make a virtual environment, or say what is missing for it.
set -eu
python=$1 folder=$2
if ! command -v "$python" > /dev/null; then
    echo "no $python here; run: apt-get install python3 python3-venv python3-dev gcc make" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "virtio needs Python 3.11 or later, and $python is $("$python" -V); set PYTHON=" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    echo "$python cannot make a virtual environment; run: apt-get install python3-venv" >&2
    exit 1
fi
"$python" -m venv "$folder"
