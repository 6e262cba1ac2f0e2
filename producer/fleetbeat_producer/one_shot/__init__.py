"""One-shot calls: a process sends one message and exits; while Redis is away the message is kept on disk."""
