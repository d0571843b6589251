"""The virtqueue: both ends of both formats, chains, chains in flight."""
