"""Background sending: the thread, its buffer, and the process's fork and exit."""
