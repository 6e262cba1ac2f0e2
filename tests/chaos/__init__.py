"""Chaos rig: kills, stops, fills and locks servers and workers, and audits what Redis had acknowledged."""
