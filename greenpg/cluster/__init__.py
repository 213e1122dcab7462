"""Floor 6: a primary and its replicas, as one object."""
