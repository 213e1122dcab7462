"""Floor 3: one connection, many tasks."""
