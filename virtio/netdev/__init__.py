"""The queues of the network device. Their Python API is virtio.net.device."""
