"""Chaos rig: servers and workers that are killed, stopped, filled and locked, and the audit of what Redis acknowledged."""
