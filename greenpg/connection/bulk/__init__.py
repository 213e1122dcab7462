"""Many rows at once: COPY, executemany by pages, big results, on libpq's non-blocking calls where psycopg2 has none."""
