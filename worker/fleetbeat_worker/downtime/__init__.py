"""Downtime: pauses, maintenance windows and outages, which are excluded from deadlines."""
