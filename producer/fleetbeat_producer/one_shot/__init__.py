"""One-shot calls: a message sent by a process that ends right after, kept on disk while Redis is away."""
