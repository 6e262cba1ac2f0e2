"""Broker: everything that Fleetbeat keeps in Redis."""
