"""`pip install 'greenpg[flask]'`: the integration is there, with all that it needs."""

import greenpg.integrations.flask

assert greenpg.integrations.flask.__all__
