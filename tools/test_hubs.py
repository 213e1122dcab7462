"""The tests on several hubs at once, since they mostly wait.

    python tools/test_hubs.py "gevent threads/once" [pytest's options]

What follows the "/" is the tests' --part. Each line begins with its job. Fails if one of them does.
"""

import subprocess
import sys
import threading


def show(job, output):
    for line in output:
        print(f"{job + ':':14}{line}", end="", flush=True)


def main(jobs, *options):
    running, readers = [], []
    try:
        for job in jobs.split():
            hub, _, part = job.partition("/")
            command = [sys.executable, "-m", "pytest", f"--hub={hub}", *([f"--part={part}"] if part else []), *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running.append(process)
            readers.append(threading.Thread(target=show, args=(job, process.stdout)))
            readers[-1].start()
        failed = [process for process in running if process.wait() != 0]
    except BaseException:
        for process in running:
            process.terminate()
        raise
    for reader in readers:
        reader.join()
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
