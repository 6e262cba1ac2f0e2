"""Notifications: the outbox, the words, the targets and the delivery of messages to people."""
