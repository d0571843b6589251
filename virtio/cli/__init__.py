"""The command ``virtio``."""
