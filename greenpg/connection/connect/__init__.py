"""Making a connection: where it leads, names, time limits."""
