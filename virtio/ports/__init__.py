"""What lies behind a queue: a TAP, a cable, a capture file."""
