"""A job makes directories after the checkpoint, and somebody else puts files into one of them: at the roll-back what is the job's goes
aside, and what is not stays where it is and is named."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

PROGRAM = """
> ready
while [ ! -e go ]; do
    if [ -e more ] && [ ! -e written ]; then
        mkdir -p results/deep alone; echo mine > results/mine; echo mine > results/deep/mine; echo mine > alone/mine; > written
    fi
    sleep 0.01
done
ls -R results alone > result.part 2>&1; mv result.part result
"""

job = Job("bash", "-c", PROGRAM)
ready()
job.checkpoint()
for life in range(3):
    write("more", "")
    ready("written")
    os.remove("more")
    if life == 0:
        write("results/deep/theirs", "theirs")
        write("results/passing", "")
        os.remove("results/passing")
        write("alone/passing", "")
        os.remove("alone/passing")
    job.crash()
    until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
    must(read("results/deep/theirs") == "theirs", "the file of somebody else is gone")
    # In later lives the directory is none that the program has made since.
    until("what is said of it", lambda: life > 0 or os.path.realpath("results/deep/theirs") in read("job.err"))
    must(not os.path.exists("results/mine") and not os.path.exists("results/deep/mine"), "newer files are still there")
    must(not os.path.exists("alone"), "a directory of the job alone is still there")
found = result()
must("theirs" in found and "mine" not in found, repr(found))
job.end()
