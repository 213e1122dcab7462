"""Prepared statements: SQL's PREPARE and EXECUTE through psycopg2's own cursor."""
