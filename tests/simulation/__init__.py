"""Simulator: fleets that are played through the real rules, and an oracle that knows the right verdicts."""
