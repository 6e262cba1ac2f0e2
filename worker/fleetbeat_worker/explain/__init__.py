"""Explanations: why an agent has its state, now or at a past time, and what other settings would have done."""
