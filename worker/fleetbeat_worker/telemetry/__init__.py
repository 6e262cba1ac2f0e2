"""Telemetry: logs and metrics of the workers."""
