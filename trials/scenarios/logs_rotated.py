"""Logs that are removed, begun anew or cut to nothing after the checkpoint (`logrotate`, its `copytruncate`, a program that rotates
by itself): small ones come back; a large one that no image holds is named, and the program goes on."""
import shutil
import tempfile

from scenario import *

PROGRAM = """
import os, sys, time
mode, filler = sys.argv[1], int(sys.argv[2])
log = open("log", mode)
log.write("x" * filler + "\\n")
turn = 0
def line():
    global turn
    turn += 1
    log.write("turn %d\\n" % turn)
    log.flush()
for n in range(50):
    line()
open("ready", "w").close()
while not os.path.exists("go"):
    line()
    if os.path.exists("rotate") and not os.path.exists("rotated"):
        log.close(); os.remove("log"); log = open("log", mode)
        for n in range(20):
            line()
        open("rotated", "w").close()
    time.sleep(0.002)
# One at least after any roll-back, however soon the word to end comes.
line()
open("result.part", "w").write("%d" % turn)
os.rename("result.part", "result")
"""


def lines():
    """The turns of the log."""
    return [int(line.split()[1]) for line in read("log").split("\n") if line.startswith("turn ")]


def removed(job):
    """The program rotates its log by itself."""
    write("rotate", "")
    ready("rotated")
    os.remove("rotate")


def cut(job):
    """Somebody cuts the log."""
    os.truncate("log", 0)
    until("a new line", lambda: os.path.getsize("log") > 0)


def rolls_back(mode, filler, path, kept):
    """One job, its log changed after each of two checkpoints."""
    job = Job("python3", "-c", PROGRAM, mode, str(filler))
    ready()
    for life in range(2):
        job.checkpoint()
        path(job)
        job.crash()
        until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
    until("what is said of it", lambda: kept or "rollback-lost" in read("job.err"))
    must(not kept or "rollback-lost" not in read("job.err"), read("job.err"))
    turns = int(result())
    found = lines()
    # Of a log that was cut, what the last life wrote after that stays where nothing shows how long it was.
    found = found if kept else found[len(found) - found[::-1].index(min(found)) - 1:]
    must(found == list(range(found[0], turns + 1)), f"{mode} {filler} {path.__name__}: {turns} turns, {found[:3]} to {found[-3:]}")
    must(not kept or found[0] == 1, f"{mode} {filler} {path.__name__}: begins with {found[:3]}")
    job.end()
    for name in ["ready", "go", "result", "log"]:
        os.remove(name)


if os.geteuid() != 0:
    lacks("only root hears what programs do to files")
# Not below /tmp, whose files are kept, as a reboot removes them.
FOLDER = tempfile.mkdtemp(prefix="hdcr-logs-", dir="/var/tmp")
atexit.register(shutil.rmtree, FOLDER)
os.chdir(FOLDER)
for path in (removed, cut):
    rolls_back("a", 3000, path, True)
    rolls_back("a", 12 << 20, path, False)
rolls_back("w", 3000, removed, True)
# A program that nobody has watched, restored by hand when its log is gone.
program = start("python3", "-c", PROGRAM, "a", str(12 << 20))
ready()
hdcr("checkpoint", program.pid, "-o", "image.hdcr", "--kill")
gone(program.pid)
turns = lines()[-1]
os.remove("log")
must("rollback-lost" not in hdcr("check", "image.hdcr"), "a check refuses it")
pid = restore("./image.hdcr")
must("rollback-lost" in read("hdcr.out"), read("hdcr.out"))
turns, first = int(result()), turns + 1
must(lines() == list(range(first, turns + 1)), f"{first} to {turns}: {lines()[:3]} to {lines()[-3:]}")
