"""`LeasedConnection`: looks like a connection, and has one of a pool's only while it needs one."""
