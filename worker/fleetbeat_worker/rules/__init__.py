"""Rules of the domain: pure functions that take the time as an argument and use neither SQL nor Redis."""
