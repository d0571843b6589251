"""Benchmarks of virtio, each beside a peer in the same run. ``python -m bench`` runs them and prints one table."""
