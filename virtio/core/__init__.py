"""What every floor may use: locks, atomics, limits, log lines, weak references."""
