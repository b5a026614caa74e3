"""bash opens and closes its log for each line, under `hdcr run`: no line twice after three kills."""
from scenario import *

job = Job("bash", "-c", "i=0; while [ ! -e go ]; do i=$((i+1)); echo $i >> log; done; echo end >> log")
until("output", lambda: len(read("log").splitlines()) > 50)
job.checkpoint()
for _ in range(3):
    now = len(read("log").splitlines())
    until("more output", lambda: len(read("log").splitlines()) > now + 200)
    job.crash()
write("go", "")
job.end()
found = read("log").splitlines()
must(found[-1] == "end" and found[:-1] == [str(i) for i in range(1, len(found))], "lines lost or twice")
