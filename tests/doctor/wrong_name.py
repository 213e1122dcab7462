"""A host name that nobody knows, and a password that would travel to it without TLS.

finds: name_not_found sslmode require_auth
hides: hunter2
"""

import greenpg

greenpg.patch("threads")
pool = greenpg.ConnectionPool("postgresql://app:hunter2@db.greenpg.invalid/app")
