"""``virtio iperf``."""
