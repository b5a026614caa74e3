"""The keeper and its program are killed at once, as by a power cut: what was done to files that nobody holds is undone when the
job goes on, and when its checkpoint is restored by hand."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

os.mkdir("data")
PROGRAM = """
echo first > data/closed; echo 0 > data/moved; echo kept > data/removed
> ready
while [ ! -e go ]; do
    if [ -e more ] && [ ! -e data/newer ]; then
        echo second >> data/closed; mv data/moved data/elsewhere; rm data/removed; > data/newer; > written
    fi
    sleep 0.01
done
cat data/* > result.part; ls data >> result.part; mv result.part result
"""


def change():
    """The job does what is undone; then it and its keeper are gone."""
    write("more", "")
    ready("written")
    until("the keeper's memory", lambda: "/data/newer" in memory())
    job.kill_all()
    for name in ["more", "written"]:
        os.remove(name)


def memory():
    """What the keeper has written down of files."""
    table = f"{os.environ['HDCR_STORE']}/.jobs/{job.name}.touched"
    return "".join(read(part) for part in [table, table + ".log"])


def judge():
    """Files are as they were at the checkpoint."""
    write("go", "")
    found = until("the result", lambda: read("result"))
    must(found == "first\n0\nkept\nclosed\nmoved\nremoved\n", "files were not rolled back: " + repr(found))
    for name in ["go", "result"]:
        os.remove(name)


job = Job("bash", "-c", PROGRAM)
ready()
job.checkpoint()
change()
pid = restore(job.name)
must(not os.path.exists("data/newer"), "the newer file is still there")
judge()
gone(pid)

# The job goes on, is killed with its keeper once more, and goes on again.
for life in range(2):
    job = Job("bash", "-c", PROGRAM)
    until("the word that it goes on", lambda: "goes on from" in read("job.err"))
    job.main()
    if life == 0:
        change()
judge()
job.end()
