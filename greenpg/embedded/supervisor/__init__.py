"""The process that owns an embedded server, so that nothing of it outlives the program that wanted it.

Never imported by greenpg: `process.py` runs `main.py` of this folder in a bare Python of its own (standard library
only). There it is out of reach of the program's monkey-patching, threads and Ctrl-C, it may take its time, and
it is PostgreSQL's real parent, so that no signal can ever hit a reused pid.

    parent.py     who it works for: requests, replies, and whether they are still there
    identity.py   the system user under whom PostgreSQL runs
    place.py      directories, permissions, binaries
    cluster.py    initdb, start, stop, crash
    main.py       the requests, and the end
"""
