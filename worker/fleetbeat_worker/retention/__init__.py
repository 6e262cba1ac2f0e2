"""Retention: deletes rows that are older than their configured age."""
