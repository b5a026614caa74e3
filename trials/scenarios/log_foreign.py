"""A log that another program appends to as well: what is cut off at a roll-back is kept, and the user is told where."""
from scenario import *

program = "exec 3>> log; i=0; while [ ! -e go ]; do i=$((i+1)); echo $i >&3; sleep 0.001; done; echo end >&3"
job = Job("bash", "-c", program)
until("output", lambda: len(read("log").splitlines()) > 20)
job.checkpoint()
before = len(read("log").splitlines())
with open("log", "a") as log:
    log.write("of somebody else\n")
until("more output", lambda: len(read("log").splitlines()) > before + 20)
job.crash()
found = until("the word of what was cut off", lambda: re.search(r"rollback-cut\].* are in (\S+)", read("job.err")))
cut = until("what was cut off", lambda: read(found.group(1)).splitlines())
must("of somebody else" in cut and len(cut) > 20, "the lines of somebody else are lost: " + repr(cut[:3]))
write("go", "")
job.end()
lines = [line for line in read("log").splitlines() if line != "of somebody else"]
must(lines == [str(i + 1) for i in range(len(lines) - 1)] + ["end"], "lines lost or twice")
