"""Programs that end at the moment in which they are brought back: the first process of their pid namespace ends with them, and
the status is theirs."""
from scenario import *

PROGRAM = """
import os, time
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.0002)
os._exit(7)
"""
program = start("python3", "-c", PROGRAM)
ready()
hdcr("checkpoint", program.pid, "-o", "./image", "--kill")
gone(program.pid)
write("go", "")
for turn in range(30):
    # It may have ended by the time its pid is told: then that is the first process, which is about to end.
    restore("./image", "--new-pids", "--stdio", "null")
    until("the end of the namespace", lambda: (reap(), not below(os.getpid()))[1])
for options in [], ["--new-pids"]:
    for turn in range(5):
        done = subprocess.run([HDCR, "restore", "./image", *options], check=False, capture_output=True, timeout=60)
        must(done.returncode == 7, done)
