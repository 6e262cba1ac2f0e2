"""The contract between agents and workers: messages, settings, Redis keys, errors, schedules and durations."""
