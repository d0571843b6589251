"""A queue with two ends, each ours or the model's, and an oracle that knows what must come out of it."""
