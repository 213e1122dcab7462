"""`pip install 'greenpg[celery]'`: the integration is there, with all that it needs."""

import greenpg.integrations.celery

assert greenpg.integrations.celery.__all__
