"""The pytest plugin: options, hooks and fixtures; the work stays in plain modules."""
