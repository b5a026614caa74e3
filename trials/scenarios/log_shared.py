"""`hdcr run ... > log 2>&1`: the program's output and the keeper's words stand in one file, and neither overwrites the other."""
from scenario import *

for flags in ["a", "w"]:
    log = open(f"log.{flags}", flags)
    program = "i=0; while [ ! -e go ]; do i=$((i+1)); echo line $i; sleep 0.002; done; echo end"
    job = Job("bash", "-c", program, stdout=log, stderr=log)
    log.close()
    path = f"log.{flags}"
    for kills in range(3):
        now = len(read(path).splitlines())
        until("output", lambda: len(read(path).splitlines()) > now + 20)
        if kills == 0:
            job.checkpoint()
        job.crash()
    now = len(read(path).splitlines())
    until("output", lambda: len(read(path).splitlines()) > now + 20)
    write("go", "")
    job.end()
    os.remove("go")
    text = read(path)
    must("\0" not in text, "there are holes in the file")
    lines = text.splitlines()
    found = [line for line in lines if not line.startswith("hdcr: ")]
    must(all(re.fullmatch(r"line \d+|end", line) for line in found), "mixed lines: " + repr(
        [line for line in found if not re.fullmatch(r"line \d+|end", line)][:3]))
    must(found == [f"line {i + 1}" for i in range(len(found) - 1)] + ["end"], "lines lost or twice")
    told = [line for line in lines if line.startswith("hdcr: ") and "rolled back to" in line]
    must(told, "the log does not tell of the rollback")
