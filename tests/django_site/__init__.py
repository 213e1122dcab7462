"""A site whose views do what views shouldn't; DJANGO_SITE_DSN says where its database is."""
