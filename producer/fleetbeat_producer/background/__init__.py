"""Background sending: the thread, its buffer and what happens at fork and exit."""
