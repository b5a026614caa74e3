"""Jobs of a user below `hdcr run`: by the user with an output that root has opened, and by root as that user. Both are rolled
back; what is newer is moved aside for the user."""
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can become another user")
os.chmod(".", 0o755)
if subprocess.run([HDCR, "--version"], user=USER, group=USER, extra_groups=[], capture_output=True, check=False).returncode:
    lacks("another user cannot run the program here")

PROGRAM = """
i=0
while [ ! -e go ]; do
    i=$((i + 1)); echo $i
    [ -e make ] && [ ! -e newer ] && > newer
    sleep 0.002
done
echo end
"""


def program_of(job):
    """The program, in whatever namespace."""
    def look():
        must(job.keeper.poll() is None, f"hdcr run ended: {read('job.err')[-300:]}")
        return [pid for pid in below(job.keeper.pid) if status(pid, "State")[:1] not in "ZX" and not is_hdcr(pid)]
    return until("the program to run", look)[0]


def finish(job):
    """Two crashes and the end of the program."""
    for _ in range(2):
        now = len(read("log").splitlines())
        until("more output", lambda: len(read("log").splitlines()) > now + 30)
        kill(program_of(job))
    write("go", "")
    job.end()
    os.remove("go")
    lines = [line for line in read("log").splitlines()]
    must(lines == [str(i + 1) for i in range(len(lines) - 1)] + ["end"], "lines lost or twice: " + repr(lines[-3:]))


def log_of_root():
    """A log that only root may write to, and everybody may read."""
    if os.path.exists("log"):
        os.remove("log")
    log = open("log", "a")
    os.chmod("log", 0o644)
    return log


os.chown(".", USER, USER)
as_user = {"user": USER, "group": USER, "extra_groups": []}

# By root, as the user: what the program has made since is moved aside, from where the user may, to where root says.
become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
job = Job(*become, "bash", "-c", PROGRAM, stdout=log_of_root())
until("output", lambda: len(read("log").splitlines()) > 20)
job.checkpoint()
write("make", "")
until("a newer file", lambda: os.path.exists("newer"))
os.remove("make")
kill(program_of(job))
until("the word of what was moved", lambda: "rollback-aside" in read("job.err"))
must(not os.path.exists("newer"), "the newer file is still there")
finish(job)

# By the user.
folder = os.path.abspath("of_user")
os.mkdir(folder)
os.chown(folder, USER, USER)
os.environ.update(HDCR_STORE=f"{folder}/store", XDG_RUNTIME_DIR=folder, HOME=folder)
job = Job("bash", "-c", PROGRAM, stdout=log_of_root(), **as_user)
until("output", lambda: len(read("log").splitlines()) > 20)
hdcr("checkpoint", job.name, **as_user)
finish(job)

# By the user, with an output that lies where only root may go: no path leads there, but the keeper's own output does.
os.mkdir("hidden", 0o700)
if os.path.exists("log"):
    os.remove("log")
os.symlink("hidden/log", "log")
with open("hidden/log", "a", encoding="utf-8") as log:
    job = Job("bash", "-c", PROGRAM, stdout=log, **as_user)
until("output", lambda: len(read("log").splitlines()) > 20)
hdcr("checkpoint", job.name, **as_user)
finish(job)

# By the user, with a deleted input of root's: in the user's namespace nobody has that owner.
write("input", "first\nsecond\n")
with open("input", encoding="utf-8") as source, log_of_root() as log:
    os.remove("input")
    job = Job("bash", "-c", PROGRAM.replace("echo end", "read a; echo end; [ $a = first ]"), stdin=source, stdout=log, **as_user)
until("output", lambda: len(read("log").splitlines()) > 20)
hdcr("checkpoint", job.name, **as_user)
finish(job)
