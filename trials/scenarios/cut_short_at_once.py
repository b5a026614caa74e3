"""Keeper and program are killed before the first checkpoint: the same command begins anew among the files that there were before; what
the life that was cut short has made is moved aside, and what was there stays. `--fresh` asks for no such thing."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

PROGRAM = """
mkdir work || exit 9
echo mine > work/mine; echo $$ > ready.part; mv ready.part ready
while [ ! -e go ]; do sleep 0.01; done
ls work before > result.part; mv result.part result
"""

write("before", "")
job = Job("bash", "-c", PROGRAM)
for life in range(3):
    ready()
    hdcr("ps")
    job.kill_all()
    must(os.path.exists("work/mine"), "there is nothing to be undone")
    job = Job("bash", "-c", PROGRAM)
    until("the word of the keeper", lambda: "cut short" in read("job.err"))
    until("what went aside", lambda: "rollback-aside" in read("job.err") or job.keeper.poll() is not None)
    until("the next life", lambda: os.path.exists("ready") or job.keeper.poll() is not None)
    must(job.keeper.poll() is None, "it did not begin anew: " + read("job.err"))
found = result()
must(found == "before\n\nwork:\nmine\n", repr(found))
job.end()
