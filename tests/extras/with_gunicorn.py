"""`pip install 'greenpg[gunicorn]'`: the integration is there, with all that it needs."""

import greenpg.integrations.gunicorn

assert greenpg.integrations.gunicorn.__all__
