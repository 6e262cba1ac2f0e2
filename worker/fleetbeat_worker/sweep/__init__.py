"""Sweep: finds overdue, stuck and flapping agents, and incidents."""
