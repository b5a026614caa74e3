"""A program that begins anew reads its standard input from where that began, and what it had written to its redirected output is not there twice."""
from scenario import *

PROGRAM = """
import os, sys, time
for line in sys.stdin:
    print("got", line.strip(), flush=True)
    if line.startswith("4"):
        print("err", file=sys.stderr, flush=True)
        open(sys.argv[1], "a").write("x")
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
"""


def life(name, output, both):
    """Kills it twice before its first checkpoint; what is found in its output in the end."""
    write(f"{name}.in", "".join(f"{n}\n" for n in range(8)))
    log = open(f"{name}.out", "ab" if "append" in name else "wb")
    log.write(output)
    log.flush()
    words = [HDCR, "run", "--name", name, "--every", "1h", "--restarts", "9", "--", "python3", "-c", PROGRAM,
             os.path.abspath(f"{name}.at"), os.path.abspath(f"{name}.go")]
    source = open(f"{name}.in", "rb", buffering=0)
    source.read(2)
    job = subprocess.Popen(words, stdin=source, stdout=log, stderr=log if both else open(f"{name}.err", "ab"), start_new_session=True)
    for round in range(2):
        until("the program", lambda: read(f"{name}.out").count("got 4") == 1 and read(f"{name}.at") == "x", 40)
        found = until("the program", lambda: child_of(job.pid, "python3"))
        os.kill(found, signal.SIGKILL)
        until("the other life", lambda: (other := child_of(job.pid, "python3")) and other != found, 40)
    until("the program", lambda: read(f"{name}.at") == "x", 40)
    write(f"{name}.go", "")
    until("the end", lambda: job.poll() is not None, 40)
    must(job.returncode == 0, f"{name}: {job.returncode}: {read(f'{name}.err')}")
    return read(f"{name}.out")


def child_of(keeper, name):
    """The program that a keeper runs."""
    for pid in below(keeper):
        if name in read(f"/proc/{pid}/cmdline").split("\0")[0] and "-c" in read(f"/proc/{pid}/cmdline").split("\0"):
            return pid
    return None


lines = "".join(f"got {n}\n" for n in range(1, 8))
for name, before in (("plain", b""), ("append", b"before\n")):
    found = life(name, before, False)
    must(found == before.decode() + lines, f"{name}: {found!r}")
    if os.geteuid() == 0:
        must(f"/{name}.out)" in read(f"{name}.err"), f"nothing is said of its output: {read(f'{name}.err')}")
# With what hdcr itself says of it in between.
found = life("both", b"", True)
must([line for line in found.splitlines() if line.startswith("got")] == lines.splitlines(), f"both: {found!r}")
must(found.count("beginning anew") == 2 and "\0" not in found, f"what hdcr says: {found!r}")
