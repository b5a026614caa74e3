"""A job of an ordinary user: nobody watches what it does to files. That is said at the start and with each roll-back, and not
at the start when the user has named files; a file below those that the user cannot read stands in nobody's way."""
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can become another user")
os.chmod(".", 0o755)
if subprocess.run([HDCR, "--version"], user=USER, group=USER, extra_groups=[], capture_output=True, check=False).returncode:
    lacks("another user cannot run the program here")

# Its standard error is not the one of `hdcr run`, which would be cut back.
PROGRAM = "exec 2>/dev/null; i=0; while [ ! -e go ]; do i=$((i + 1)); echo $i >> data/$((i % 3)); echo $i; sleep 0.002; done"
CODE = "[files-unwatched]"
as_user = {"user": USER, "group": USER, "extra_groups": []}
folder = os.path.abspath("of_user")
os.mkdir(folder)
os.mkdir("data")
for path in (".", "data", folder):
    os.chown(path, USER, USER)
os.environ.update(HDCR_STORE=f"{folder}/store", XDG_RUNTIME_DIR=folder, HOME=folder)


def program_of(job):
    """The program, in whatever namespace."""
    def look():
        must(job.keeper.poll() is None, f"hdcr run ended: {read('job.err')[-300:]}")
        return [pid for pid in below(job.keeper.pid) if status(pid, "State")[:1] not in "ZX" and not is_hdcr(pid)]
    return until("the program to run", look)[0]


# As a shell has its output while that of a command leads to another file.
MOVED = "exec 11>&1 >/dev/null 2>&1; i=0; while [ ! -e go ]; do i=$((i + 1)); echo $i >&11; sleep 0.002; done"


def rounds(at_start, program=PROGRAM, **options):
    """A checkpoint and two crashes; what was said."""
    job = Job("bash", "-c", program, stdout=open("log", "w"), **options, **as_user)
    until("output", lambda: len(read("log").splitlines()) > 20)
    must(read("job.err").count(CODE) == at_start, f"at the start: {read('job.err')}")
    hdcr("checkpoint", job.name, **as_user)
    for number in range(1, 3):
        now = len(read("log").splitlines())
        until("more output", lambda: len(read("log").splitlines()) > now + 30)
        kill(program_of(job))
        until("the word of the roll-back", lambda: read("job.err").count("rolled back to") == number)
        until("the word of files", lambda: read("job.err").count(CODE) == at_start + number)
    write("go", "")
    job.end()
    os.remove("go")
    hdcr("rm", job.name, **as_user)


os.chown(".", USER, USER)
rounds(1)
rounds(1, MOVED)
write("data/of_root", "secret", 0o600)
os.mkdir("data/closed", 0o700)
rounds(0, options=["--files", os.path.abspath("data")])
