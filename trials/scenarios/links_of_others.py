"""A job of root in a directory of somebody else, who puts links in the middle of its paths between a checkpoint and a
roll-back: nothing behind them is touched, and it is said; what is the very file of the job still is rolled back."""
from scenario import *

USER = 54321
NAMES = ["held", "loose", "newer", "gone"]
if os.geteuid() != 0:
    lacks("only root has anything to lose")
os.chmod(".", 0o755)

PROGRAM = """
for name in held loose gone; do echo old > data/$name; done
[ $1 = hold ] && exec 7<> data/held
> ../ready
until [ -e ../go ]; do sleep 0.01; done
echo younger > data/loose; rm data/gone; echo younger > data/newer; [ $1 = hold ] && echo younger >&7
> ../changed
until [ -e ../end ]; do sleep 0.01; done
"""


def victims():
    """What the files of the system are, with their times."""
    return {name: (read(f"victim/{name}"), os.stat(f"victim/{name}").st_mtime_ns) for name in sorted(os.listdir("victim"))}


def job(kind, *options):
    """A job that has changed all that it has since its checkpoint; its program."""
    for word in ["ready", "go", "changed", "end"]:
        if os.path.exists(word):
            os.remove(word)
    subprocess.run("rm -rf work victim; mkdir -p work/data victim", shell=True, check=True)
    for name in NAMES:
        write(f"victim/{name}", f"of the system: {name}\n")
    for mine in ["work", "work/data"]:
        os.chown(mine, USER, USER)
    made = Job("sh", "-c", PROGRAM, "sh", kind, options=["--fresh", *options], cwd="work")
    ready()
    made.checkpoint()
    write("go", "")
    ready("changed")
    os.remove("go")
    return made, made.main()[0]


def finish(this):
    """The program does it all once more, and ends."""
    write("go", "")
    write("end", "")
    this.end()


def as_other(script):
    """What the owner of the directory does."""
    subprocess.run(["sh", "-ec", script], user=USER, group=USER, extra_groups=[], cwd="work", check=True)


# Nothing in there is open: the roll-back is done, and what lies behind the link is named.
this, program = job("loose")
before = victims()
as_other("mv data away; ln -s ../victim data")
kill(program)
until("the roll-back", lambda: "rolled back to" in read("job.err") and this.main(), 40)
must(victims() == before, f"the files of the system were touched: {victims()}")
until("what is said of it", lambda: "path-through-link" in read("job.err"), 40)
finish(this)

# One is open: the roll-back cannot be done.
this, program = job("hold")
before = victims()
as_other("mv data away; ln -s ../victim data")
kill(program)
until("the end of the job", lambda: this.keeper.poll() is not None, 40)
must(this.keeper.returncode != 0 and "path-through-link" in read("job.err"), f"it is not said: {read('job.err')}")
must(victims() == before, f"the files of the system were touched: {victims()}")
# Nor by hand.
must("path-through-link" in hdcr("restore", this.name, ok=False), "it is not said")
must(victims() == before, f"the files of the system were touched: {victims()}")

# The link leads to the very files: those are rolled back.
this, program = job("hold")
as_other("mv data away; ln -s away data")
kill(program)
until("the roll-back", lambda: "rolled back to" in read("job.err") and this.main(), 40)
have = {name: read(f"work/away/{name}") for name in NAMES}
must((have["held"], have["loose"]) == ("old\n", "old\n"), f"they are not as they were: {have}")
finish(this)

# A link of root, as in /var/run and /home: all is rolled back.
this, program = job("hold")
os.chown("work", 0, 0)
os.rename("work/data", "work/real")
os.symlink("real", "work/data")
kill(program)
until("the roll-back", lambda: "rolled back to" in read("job.err") and this.main(), 40)
have = {name: read(f"work/real/{name}") for name in NAMES}
must(have == {"held": "old\n", "loose": "old\n", "gone": "old\n", "newer": ""}, f"they are not as they were: {have}")
finish(this)
