"""Ingest: moves messages from the Redis streams to SQL."""
