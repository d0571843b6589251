"""The queues of the network driver. Their Python API is virtio.net.vtnet."""
