"""Random programs, run on plain blocking psycopg2 and on greenpg: is there any difference that a program could see?

A program is a list of steps, and a step is Python source (`programs.py` makes them, from a seed). `session.py` runs
them and notes after each step whatever can be seen: the same code on both sides. `oracle.py` is the process with plain
psycopg2, `subject.py` runs them on greenpg, in this process. `comparing.py` finds the first difference and shrinks the
program to what is needed for it.

    python -m tests.differential --seed 1 --count 100000 --jobs 2 [--hub gevent|eventlet|threads]
"""
