"""Symbolic links and a FIFO that a job has made are replaced and removed after the checkpoint: they are back after the roll-back,
and so are those below a path that the user named."""
import shutil

from scenario import *

PROGRAM = """
umask 022
mkdir -p data/run-1 data/run-2 named
echo 1 > data/run-1/text; echo 2 > data/run-2/text
ln -s run-1 data/latest; ln -s nowhere data/dangling; ln -s ../data/latest/text named/text; mkfifo -m 640 data/fifo
> ready
while [ ! -e go ]; do
    if [ -e more ] && [ ! -e written ]; then
        ln -sfn run-2 data/latest; rm data/dangling data/fifo; rm -r named; mkdir named; ln -s elsewhere named/text; > written
    fi
    sleep 0.01
done
{ cat data/latest/text named/text; readlink data/dangling; stat -c '%F %a' data/fifo; ls data named; } > result.part 2>&1
mv result.part result
"""

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

for options in [(), ("--files", "data", "--files", "named")]:
    job = Job("bash", "-c", PROGRAM, options=options)
    ready()
    for life in range(2):
        job.checkpoint()
        write("more", "")
        ready("written")
        os.remove("more")
        job.crash()
        until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
        must("rollback-lost" not in read("job.err"), read("job.err"))
        must(not os.path.exists("written"), "a newer file is still there")
    found = result()
    must(found == "1\n1\nnowhere\nfifo 640\ndata:\ndangling\nfifo\nlatest\nrun-1\nrun-2\n\nnamed:\ntext\n", repr(found))
    job.end()
    for name in ["data", "named"]:
        shutil.rmtree(name)
    for name in ["ready", "go", "result"]:
        os.remove(name)
