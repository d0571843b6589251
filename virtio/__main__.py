"""``python -m virtio`` is the command ``virtio``."""

import sys

from virtio.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
