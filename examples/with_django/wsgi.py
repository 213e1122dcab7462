"""A small Django site, a notebook, on greenpg.

    export GREENPG_DSN=...                      # a database of yours; the table notes_note is made in it
    python manage.py migrate
    gunicorn -k gevent wsgi                     # http://127.0.0.1:8000

Nothing here is green but the engine in settings.py: the worker is monkey-patched by gunicorn, psycopg2 by the engine.
"""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
