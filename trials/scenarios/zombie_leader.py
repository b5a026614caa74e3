"""A daemon in a session that is led by a zombie: its maker has ended, and the parent of that has not waited for it yet."""
from scenario import *

PROGRAM = """
import os, time
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        turn = 0
        while not os.path.exists("end"):
            turn += 1
            with open("daemon.part", "w") as out:
                out.write(f"{os.getsid(0)} {os.getpgid(0)} {turn}")
            os.rename("daemon.part", "daemon")
            time.sleep(0.005)
        os._exit(0)
    os._exit(7)
while "State:\\tZ" not in open(f"/proc/{child}/status").read():
    time.sleep(0.001)
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.005)
found = os.waitpid(child, 0)
open("result.part", "w").write(f"{found == (child, 7 << 8)} {child}")
os.rename("result.part", "result")
while not os.path.exists("end"):
    time.sleep(0.005)
"""


def daemon():
    """What the daemon says of itself: session, group, how far it is."""
    return [int(word) for word in until("the daemon", lambda: read("daemon").split())]


job = Job("python3", "-c", PROGRAM)
ready()
before = daemon()
for _ in range(3):
    job.checkpoint()
    job.crash()
    last = daemon()[2]
    until("the daemon to go on", lambda: daemon()[2] > last)
    must(daemon()[:2] == before[:2], f"session and group were {before[:2]}, and are {daemon()[:2]}")
found = result().split()
must(found == ["True", str(before[0])], f"not the status of the zombie: {found}")
write("end", "")
job.end()
