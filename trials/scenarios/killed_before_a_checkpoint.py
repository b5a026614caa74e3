"""A program that is killed before its first checkpoint begins anew among the files that there were before it: what it has made
is moved aside, what it has renamed comes home, what it has added is cut off, and what cannot come back is named."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files")
PROGRAM = """
mkdir made || exit 3
echo 1 > made/1; echo new > fresh; echo more >> log; mv old older; rm gone; echo other > changed
mv d e; echo x > e/x
> ../changed_all
until [ -e ../end ]; do sleep 0.01; done
"""


def files():
    """All files with their contents."""
    paths = [os.path.join(at, name) for at, _, names in os.walk("work") for name in names]
    return {os.path.relpath(path, "work"): read(path) for path in paths}


os.mkdir("work")
for name in ["log", "old", "gone", "changed"]:
    write(f"work/{name}", f"{name}\n")
os.mkdir("work/d")
write("work/d/y", "y\n")
before = files()
job = Job("sh", "-c", PROGRAM, cwd="work")
for round in range(3):
    ready("changed_all")
    must("older" in files(), f"nothing has changed: {files()}")
    job.crash()
    until("the roll-back", lambda: (said := read("job.err")).count("beginning anew") == round + 1 and "/changed_all)" in said)
    must(job.keeper.poll() is None, f"the program met what it had left: {read('job.err')}")
said = read("job.err")
for code, name in [("rollback-aside", "made"), ("rollback-aside", "fresh"), ("rollback-lost", "gone"), ("rollback-written", "changed")]:
    must(re.search(rf"\[{code}\] file \(\S*/{name}\)", said), f"{code} of {name} is not said: {said}")
must("the checkpoint" not in said, f"there was no checkpoint: {said}")
ready("changed_all")
write("end", "")
job.end()
must(read("work/log") == "log\nmore\n", f"the log has {read('work/log')!r}")
must(sorted(files()) == ["changed", "e/x", "e/y", "fresh", "log", "made/1", "older"], f"it is not as it must be: {files()}")
