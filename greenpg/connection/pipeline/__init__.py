"""Statements that are sent without waiting for the answers of those before: libpq's pipeline mode on psycopg2's own
connection."""
