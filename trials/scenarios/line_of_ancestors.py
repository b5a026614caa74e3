"""A job that has gone back to an older checkpoint does not go on from the newer one, which belongs to a life that was given up:
not at the next crash, and not when its keeper has died."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root hears what programs do to files")

os.mkdir("data")
PROGRAM = """
step() {
    until [ -e $1 ]; do sleep 0.01; done
    echo $1 >> data/log
    > data/$1
}
> data/log
> ready
step one
step two
until [ -e go ]; do sleep 0.01; done
(cat data/log; ls data) > result.part; mv result.part result
"""


def steps(*names):
    """The program does these steps."""
    for name in names:
        write(name, "")
        until(f"step {name}", lambda: os.path.exists(f"data/{name}"))


def crash(number, expected):
    """The program is killed for the so-manieth time; the checkpoint that it comes back from."""
    for name in ["one", "two"]:
        if os.path.exists(name):
            os.remove(name)
    job.crash()
    told = rf"rolled back to \S+@(\d+) .*restart {number} of 9"
    found = until("the crash to be told", lambda: re.search(told, read("job.err")))
    must(found.group(1) == str(expected), f"rolled back to {found.group(1)}, not to {expected}")


began = time.monotonic()
job = Job("bash", "-c", PROGRAM)
ready()
job.checkpoint()
steps("one")
job.checkpoint()
crash(1, 2)
crash(2, 1)
must(os.listdir("data") == ["log"], f"{os.listdir('data')}")
# Further on than the last crash, so that it is another one.
before = time.monotonic() - began + 2
began = time.monotonic()
steps("one", "two")
until("another place", lambda: time.monotonic() - began > before)
crash(3, 1)
must(os.listdir("data") == ["log"], f"{os.listdir('data')}")

steps("one", "two")
job.kill_all()
for name in ["one", "two"]:
    os.remove(name)
job = Job("bash", "-c", PROGRAM)
found = until("the word that it goes on", lambda: re.search(r"goes on from its checkpoint \S+@(\d+)", read("job.err")))
must(found.group(1) == "1", f"goes on from {found.group(1)}")
job.main()
steps("one", "two")
write("go", "")
job.end()
must(read("result") == "one\ntwo\nlog\none\ntwo\n", repr(read("result")))
