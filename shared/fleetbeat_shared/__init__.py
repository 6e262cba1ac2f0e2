"""The contract between agents and workers: messages, settings, names, errors and time rules."""
