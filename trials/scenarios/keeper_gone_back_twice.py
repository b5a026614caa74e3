"""A job goes on by a new keeper, and then goes back to before that: what was done under the old keeper and what was done under the
new one is undone."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

PROGRAM = """
turn=0
mkdir -p data
while [ ! -e go ]; do
    turn=$((turn + 1)); [ -e "step" ] && { read word < step; echo $turn > data/$word; mv step told; }
    sleep 0.01
done
ls data > result.part; mv result.part result
"""


def step(word):
    """Has the job make a file."""
    write("step", word + "\n")
    until("the file " + word, lambda: os.path.exists("told"))
    os.remove("told")


job = Job("bash", "-c", PROGRAM)
job.main()
job.checkpoint()
step("under_the_old_one")
job.checkpoint()
until("the keeper's memory", lambda: b"under_the_old_one" in open(f"{os.environ['HDCR_STORE']}/.jobs/{job.name}.touched", "rb").read())
job.kill_all()
job = Job("bash", "-c", PROGRAM)
until("the word that it goes on", lambda: "goes on from" in read("job.err"))
step("under_the_new_one")
must(os.path.exists("data/under_the_new_one") and os.path.exists("data/under_the_old_one"), "files are missing")
job.crash()
until("the first roll-back", lambda: "rolled back to" in read("job.err"))
must(not os.path.exists("data/under_the_new_one"), "the first roll-back leaves a newer file")
step("under_the_new_one_again")
job.crash()
until("the second roll-back", lambda: read("job.err").count("rolled back to") == 2)
must(re.findall(r"rolled back to \S+@(\d+)", read("job.err")) == ["2", "1"], "not gone back to the one before: " + read("job.err"))
write("go", "")
found = until("the result", lambda: os.path.exists("result") and ["", read("result")])
must(found[1] == "", "files of later lives are still there: " + repr(found[1]))
job.end()
