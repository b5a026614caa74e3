"""Names as long as a file system allows: a file that is open under one, companions that cannot be, and one that is moved aside twice."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files")
PROGRAM = """
import os, time
held = open("h" * 255, "w", buffering=1)
open("i" * 248, "w").write("x")
n = 0
open("ready", "w").close()
while not os.path.exists("go"):
    n += 1
    held.write("%d\\n" % n)
    if os.path.exists("more") and not os.path.exists("n" * 255):
        open("n" * 255, "w").write("made by %d" % n)
    time.sleep(0.01)
print(open("h" * 255).read() == "".join("%d\\n" % k for k in range(1, n + 1)))
"""
job = Job("python3", "-c", PROGRAM)
ready()
job.checkpoint()
write("more", "")
for life in range(3):
    until("the new file", lambda: os.path.exists("n" * 255))
    job.crash()
    until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
    must(job.keeper.poll() is None, f"hdcr run ended: {read('job.err')[-400:]}")
job.checkpoint()
write("go", "")
job.end()
must(read("job.out") == "True\n", f"the file holds something else: {read('job.out')}")
must(len({name for top, _, names in os.walk(os.environ["HDCR_STORE"]) for name in names if name.startswith("nnn")}) == 3, "not all that was moved aside is there")
