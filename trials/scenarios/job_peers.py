"""Members of a parallel job that end with a status other than 0 as soon as another one is killed go back with it; one that fails by itself ends the job."""
import json

from scenario import *

PROGRAM = """
import fcntl, os, sys, time
me = int(os.environ["HDCR_MEMBER"])
peer = 1 - me
own = open(f"alive.{me}", "a")
fcntl.flock(own, fcntl.LOCK_EX)
open(f"up.{me}", "a").close()
while not os.path.exists(f"up.{peer}"):
    time.sleep(0.001)
theirs = open(f"alive.{peer}", "a")
shown = open(f"turn.{me}", "w")
turn = 0
while not os.path.exists("go"):
    turn += 1
    os.pwrite(shown.fileno(), b"%10d" % turn, 0)
    try:
        fcntl.flock(theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        if not any(map(os.path.exists, ["go", f"fail.{peer}"])):
            sys.exit(1)
    if os.path.exists(f"fail.{me}"):
        sys.exit(3)
    time.sleep(0.001)
"""


def turn(member):
    """How far a member is."""
    return int(read(f"turn.{member}").strip() or 0)


def program(member):
    """The number of its program, seen from here."""
    def look():
        for pid in filter(str.isdigit, os.listdir("/proc")):
            words = read(f"/proc/{pid}/cmdline").split("\0")
            if words[:3] == ["python3", "-c", PROGRAM] and f"HDCR_MEMBER={member}\0" in read(f"/proc/{pid}/environ"):
                return int(pid)
        return None
    return until(f"the program of member {member}", look)


def both_go_on():
    """Waits until both work."""
    before = [turn(member) for member in range(2)]
    until("both members", lambda: all(turn(member) != before[member] for member in range(2)), 40)


words = [HDCR, "job", "run", "--name", "peers", "--members", "2", "--every", "1h", "--restarts", "9", "--", "python3", "-c", PROGRAM]
for last in ("go", "fail.1"):
    job = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=open("job.out", "w"), stderr=open("job.err", "w"),
                           start_new_session=True)
    both_go_on()
    for life in range(3 if last == "go" else 0):
        until("a checkpoint", lambda: subprocess.run([HDCR, "job", "checkpoint", "peers"], capture_output=True).returncode == 0)
        os.kill(program(life % 2), signal.SIGKILL)
        until("the way back", lambda: job.poll() is not None or read("job.err").count("rolled back to") > life, 40)
        must(job.poll() is None, f"hdcr job run ended with {job.returncode}: {read('job.err')[-500:]}")
        both_go_on()
    write(last, "")
    until("the end of the job", lambda: job.poll() is not None, 40)
    must(job.returncode == (0 if last == "go" else 3), f"hdcr job run: {job.returncode}: {read('job.err')[-500:]}")
    for name in ("go", "up.0", "up.1", "turn.0", "turn.1"):
        if os.path.exists(name):
            os.remove(name)
