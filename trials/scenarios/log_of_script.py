"""A script whose output goes to one log, that of HDCR's program and of its other commands: what they have written since the
checkpoint is cut back with the rest, and kept."""
from scenario import *

program = "i=0; while [ ! -e go ]; do i=$((i+1)); echo $i; sleep 0.001; done; echo end"
with open("log", "w", encoding="utf-8") as log:
    one = start("bash", "-c", program, stdout=log)
    until("output", lambda: len(read("log").splitlines()) > 20)
    hdcr("checkpoint", str(one.pid), "-o", "image", "--kill")
    gone(one.pid)
    reap()
    until("the end of all", lambda: (reap(), not below(os.getpid()))[1])
    # At the offset that both share, as `>` leaves it.
    log.seek(0, os.SEEK_END)
    log.write("of another command\n")
    log.flush()
    write("go", "")
    said = hdcr("restore", "./image", stdout=log)
found = re.search(r"rollback-cut\].* are in (\S+)", said)
must(found, "nothing is said of what was cut off: " + repr(said))
must("of another command" in read(found.group(1)), "the line of the other command is lost")
lines = read("log").splitlines()
must(lines == [str(i + 1) for i in range(len(lines) - 1)] + ["end"], "lines lost or twice: " + repr(lines[-3:]))
