"""Read by each Python that runs under a sanitizer: the programs that it starts run without one, its Pythons with it.

The wrapper that tools/sanitizers.sh writes preloads the sanitizer's run-time library. Other programs inherit nothing
of that: some hang under it (curl), and an error of theirs is none of ours.
"""

import os
import sys

os.environ.pop("LD_PRELOAD", None)
sys.executable = os.environ["VIRTIO_SANITIZED_PYTHON"]
