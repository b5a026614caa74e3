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

# A file with two names is held open by one of them, which is replaced, or removed and given to a new file.
HELD = """
import os, time
def whole(name, text):
    with open(name, "w") as file:
        file.write(text)
whole("a", "of both")
os.link("a", "b")
held = open("b", "r+", buffering=1)
open("ready", "w").close()
while not os.path.exists("go"):
    if os.path.exists("more") and not os.path.exists("written"):
        held.write("more")
        if open("more").read() == "remove":
            os.remove("b"); whole("b", "another")
        else:
            whole("t", "another"); os.rename("t", "b")
        open("written", "w").close()
    time.sleep(0.002)
one = {os.stat("a").st_ino, os.stat("b").st_ino, os.fstat(held.fileno()).st_ino}
open("result.part", "w").write("%d %s" % (len(one), open("b").read()))
os.rename("result.part", "result")
"""
job = Job("python3", "-c", HELD)
ready()
for life, how in enumerate(["remove", "rename", "remove"]):
    job.checkpoint()
    write("more", how)
    ready("written")
    os.remove("more")
    job.crash()
    until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
found = result()
must(found == "1 of both", found)
job.end()
