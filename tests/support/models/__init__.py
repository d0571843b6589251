"""Virtqueues in plain Python, written from VIRTIO 1.4 alone: the oracle of the tests, and the foreign peer."""
