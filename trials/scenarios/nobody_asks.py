"""A restore whose command is killed while it rolls files back: no program runs of which nobody knows, and files are put back, at once
or by the next restore."""
from scenario import *

MANY = 60
PROGRAM = """
import os, time
files = [open("file-%%d" %% n, "w+") for n in range(%d)]
for file in files:
    file.write("old" * 100000); file.flush()
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.002)
good = all(os.pread(file.fileno(), 1 << 20, 0) == b"old" * 100000 for file in files)
open("result.part", "w").write("good" if good else "wrong")
os.rename("result.part", "result")
""" % MANY
NAMES = [f"file-{n}" for n in range(MANY)]


def texts():
    """How all files begin and end."""
    found = set()
    for name in NAMES:
        with open(name, "rb") as file:
            found |= {os.pread(file.fileno(), 3, at) for at in (0, 299_997)}
    return found


def stop_within(command):
    """Stops what restores when it has rolled back some files and not all; whether that was in time."""
    while command.poll() is None and b"old" not in texts():
        pass
    mine = [pid for pid in below(command.pid) if is_hdcr(pid)]
    for pid in mine:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            pass
    return mine, b"new" in texts() and command.poll() is None


def killed(*options):
    """One restore that is killed while it rolls back; `False` when it was done before."""
    for name in NAMES:
        with open(name, "r+") as file:
            file.write("new" * 100000)
    if os.path.exists("pidfile"):
        os.remove("pidfile")
    command = subprocess.Popen([HDCR, "restore", "./image", "--detach", "--pidfile", "pidfile", *options],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stopped, in_time = stop_within(command)
    command.kill()
    command.wait()
    for pid in stopped:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
    if in_time:
        until("the end of a restore that nobody waits for", lambda: (reap(), not below(os.getpid()))[1])
        must(not os.path.exists("pidfile"), "a program is said to run")
    end_all()
    return in_time


program = start("python3", "-c", PROGRAM)
ready()
hdcr("checkpoint", program.pid, "-o", "image/", "--kill")
gone(program.pid)
for options in [], ["--new-pids"]:
    must(any(killed(*options) for turn in range(20)), "no restore was met while it rolled back")
    if not options:
        must(texts() == {b"new"}, "files were not put back")
restore("./image")
must(result() == "good", read("result"))
