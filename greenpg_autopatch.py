"""gevent's plug-in: with GREENPG_AUTOPATCH=1 in the environment, `gevent.monkey.patch_all()` calls `greenpg.patch()`.

gevent loads this module in every program in whose environment greenpg is installed. It's outside of the package, since
to import that, and psycopg2, is what a program that hasn't asked for it must not pay for.
"""

import os


def after_patch_all(event: object) -> None:
    """The entry point `gevent.plugins.monkey.did_patch_all`. Raises what `greenpg.patch()` raises, doesn't suspend.

    A program that is patched already, in whatever way, stays as it is.
    """
    if os.environ.get("GREENPG_AUTOPATCH", "").lower() in ("", "0", "false", "no", "off"):
        return
    import greenpg

    if not greenpg.is_patched():
        greenpg.patch("gevent")
