"""The network device and driver of virtio. Installed as ``virtio.net``."""

if __name__ != "virtio.net":
    raise ImportError(f"{__name__} is virtio's source folder: import virtio.net")
