"""Floor 2: one connection. What psycopg2 does on it, and lets the other tasks run meanwhile."""
