"""Floor 3: many tasks, few connections."""
