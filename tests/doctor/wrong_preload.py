"""With preload_app, gunicorn imports the program before its worker patches anything.

options: --config preload_conf.py
finds: taken_before_patching
"""

import os
from time import sleep

import greenpg

pool = greenpg.ConnectionPool(os.environ["GREENPG_DSN"])
unpatched = sleep
