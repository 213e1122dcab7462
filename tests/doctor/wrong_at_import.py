"""The program doesn't come up.

finds: app_fails
says: ModuleNotFoundError: No module named 'a_module_that_is_missing'
"""

import a_module_that_is_missing  # noqa: F401
