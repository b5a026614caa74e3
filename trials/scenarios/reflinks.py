"""Files larger than the limit, on file systems that have reflinks (XFS, Btrfs), with the store on the same one: what a job
overwrites, removes or replaces there comes back, whatever its size, and takes no room of its own in a checkpoint."""
import shutil

from scenario import *

MIB = 1 << 20
SIZE = 24 * MIB
OPTIONS = ("--file-limit", "4MiB", "--keep", "2")
PROGRAM = """
import os, time
MIB, SIZE = 1 << 20, %d
def make(name):
    with open(name, "wb") as file:
        for at in range(0, SIZE, MIB):
            file.write(name.encode().ljust(8)[:8] * (MIB // 8))
for name in ("held", "once", "gone", "replaced"):
    make(name)
log = open("log", "a")
log.write("x" * 99 + "\\n" + ("y" * 99 + "\\n") * 60000)
log.flush()
held = open("held", "r+b", buffering=0)
blocks = {}
turn = 0
def text(name, at):
    return (b"%%s %%012d" %% (name.encode(), blocks.get((name, at), 0))) if (name, at) in blocks else (name.encode().ljust(8)[:8] * 3)[:17]
def put(file, name, at):
    blocks[name, at] = turn
    file.seek(at)
    file.write(text(name, at))
def work():
    global turn
    turn += 1
    put(held, "held", turn * 7919 %% (SIZE // 4096) * 4096)
    with open("once", "r+b") as file:
        put(file, "once", turn * 104729 %% (SIZE // 4096) * 4096)
    log.write("turn %%d\\n" %% turn)
    log.flush()
def wrong():
    for name in ("held", "once", "gone", "replaced"):
        with open(name, "rb") as file:
            whole = file.read()
        if len(whole) != SIZE:
            return "%%s has %%d bytes" %% (name, len(whole))
        for at in range(0, SIZE, 4096):
            want = text(name, at)
            if whole[at:at + len(want)] != want or whole[at + 32:at + 40] != name.encode().ljust(8)[:8]:
                return "%%s at %%d: %%r, not %%r" %% (name, at, whole[at:at + 40], want)
    lines = open("log").read().split("\\n")
    if lines[60001:-1] != ["turn %%d" %% n for n in range(1, turn + 1)]:
        return "the log has %%d lines after %%d turns" %% (len(lines), turn)
for n in range(100):
    work()
open("ready", "w").close()
while not os.path.exists("go"):
    work()
    if os.path.exists("more") and not os.path.exists("written"):
        os.remove("gone")
        make("new.part"); os.rename("new.part", "replaced")
        log.close(); os.remove("log"); log = open("log", "a")
        for n in range(200):
            work()
        open("written", "w").close()
    time.sleep(0.002)
open("result.part", "w").write(wrong() or "good")
os.rename("result.part", "result")
""" % SIZE


def taken():
    """Bytes of the store that are in no clone, and no program."""
    found = [os.path.join(top, name) for top, _, names in os.walk("store/jobs") for name in names if not name.startswith(("clone-", "content-"))]
    return sum(os.lstat(path).st_blocks * 512 for path in found if os.path.lexists(path))


def clones():
    """All clones in the store, by checkpoint."""
    found = {}
    for top, _, names in os.walk("store"):
        found |= {os.path.join(top, name): top for name in names if name.startswith("clone-")}
    return found


def on(kind, make):
    """A new file system of a kind, here, with the store on it."""
    folder = os.path.abspath(kind)
    os.mkdir(folder)
    with open(f"{kind}.disk", "wb") as disk:
        disk.truncate(1 << 30)
    if subprocess.run([*make, f"{kind}.disk"], check=False, capture_output=True).returncode != 0:
        lacks(f"no {make[0]}")
    done = subprocess.run(["mount", "-t", kind, "-o", "loop", f"{kind}.disk", folder], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        lacks(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    os.chdir(folder)
    os.environ["HDCR_STORE"] = os.path.join(folder, "store")


def changed(job, path):
    """The job has removed, replaced and overwritten files, and is killed."""
    write("more", "")
    ready("written")
    os.remove("more")
    path()


def rounds():
    """Several checkpoints, each followed by a crash or the end of everybody; then what the program finds."""
    job = Job("python3", "-c", PROGRAM, options=OPTIONS)
    ready()
    for life in range(3):
        # A clone waits for what is not on the disk yet, and there is not much time for those of files that nobody holds.
        os.sync()
        text = job.checkpoint()
        must("file-beyond-limit" not in text and "file-too-large" not in text, text)
        must(taken() < SIZE, f"the checkpoints take {taken()} bytes")
        changed(job, job.crash)
        until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
        must("rollback-written" not in read("job.err") and "rollback-lost" not in read("job.err"), read("job.err"))
        must(not os.path.exists("written"), "a newer file is still there")
    os.sync()
    job.checkpoint()
    changed(job, job.kill_all)
    job = Job("python3", "-c", PROGRAM, options=OPTIONS)
    until("the word that it goes on", lambda: "goes on from" in read("job.err"))
    must(len(set(clones().values())) == 2 and len(clones()) >= 8, clones())
    os.sync()
    must("clone" in hdcr("show", job.name), "a checkpoint does not show its clones")
    job.checkpoint()
    must(len(set(clones().values())) == 2, "an old checkpoint left its clones")
    return job


def killed(job):
    """Everybody is killed, and so are restores, at any moment: nothing is left half alive, and the next one finds it all."""
    os.sync()
    job.checkpoint()
    changed(job, job.kill_all)
    took, let_go = 0.2, 0
    for turn in range(20):
        if os.path.exists("pidfile"):
            os.remove("pidfile")
        began = time.monotonic()
        command = subprocess.Popen([HDCR, "restore", job.name, "--detach", "--pidfile", "pidfile"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # The first one tells how long it takes; each later one is killed one step later than the one before.
            command.wait(None if turn == 0 else took * turn / 20)
            took = time.monotonic() - began if turn == 0 else took
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()
        # What a killed one has made ends by itself, unless it was killed after the program was let go: then that works.
        lengths = set()
        def settled():
            reap()
            lengths.add(len(read("log")))
            return not below(os.getpid()) or len(lengths) > 5
        until("the end of a half made tree", settled)
        if below(os.getpid()):
            let_go += 1
            end_all()
    must(0 < let_go < 20, f"{let_go} restores came to their end")
    job = Job("python3", "-c", PROGRAM, options=OPTIONS)
    until("the word that it goes on", lambda: "goes on from" in read("job.err"))
    return job


def damaged(job):
    """A clone that is not what it was is seen, and the checkpoint before is taken."""
    os.sync()
    first = job.checkpoint()
    newest = max(set(clones().values()), key=lambda top: int(os.path.basename(top)))
    with open(min(path for path, top in clones().items() if top == newest), "r+b") as clone:
        clone.write(b"something else")
    must("clone" in hdcr("verify", job.name, ok=False), f"the damage is not found: {first}")
    job.crash()
    found = result()
    must(found == "good", found)
    job.end()


def alone():
    """By hand, into a directory; into a file, which can have no clones, it is refused."""
    for name in ["ready", "go", "result"]:
        os.remove(name)
    program = start("python3", "-c", PROGRAM)
    ready()
    must("file-beyond-limit" in hdcr("checkpoint", program.pid, "-o", "x.hdcr", "--file-limit", "4MiB", ok=False), "not refused")
    hdcr("checkpoint", program.pid, "-o", "image/", "--file-limit", "4MiB", "--kill")
    gone(program.pid)
    for name in ["held", "once"]:
        with open(name, "r+b") as file:
            file.write(b"0" * SIZE)
    hdcr("verify", "./image")
    os.rename("image", "moved")
    restore("./moved")
    # Nobody has watched: what the program does not hold is as it was found.
    kill(int(read("pidfile")))
    # A copy elsewhere has the bytes, and no blocks in common.
    shutil.copytree("moved", f"{HERE}/copied")
    shutil.rmtree("moved")
    restore(f"{HERE}/copied")
    found = result()
    shutil.rmtree(f"{HERE}/copied")
    must(found == "good" or found.startswith("once at"), found)


def full():
    """Where there is not room for what the program could write over until the next checkpoint, no clone takes it."""
    for name in ["ready", "go", "result"]:
        os.remove(name)
    program = start("python3", "-c", PROGRAM)
    ready()
    there = os.statvfs(".")
    with open("ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, there.f_bavail * there.f_frsize - SIZE // 2)
    text = hdcr("checkpoint", program.pid, "-o", "image/", "--file-limit", "4MiB", ok=False)
    must("no-room-for-clone" in text, text)
    kill(program.pid)
    os.remove("ballast")


WHOLE = """
import mmap, os, time
SIZE = %d
file = open("whole", "w+b")
file.truncate(SIZE)
space = mmap.mmap(file.fileno(), SIZE)
turn = 0
def fill():
    for at in range(0, SIZE, 4096):
        space[at:at + 8] = b"%%08d" %% turn
fill()
open("ready", "w").close()
while not os.path.exists("go"):
    if os.path.exists("more") and not os.path.exists("written"):
        turn += 1
        fill()
        open("written", "w").close()
    time.sleep(0.002)
good = all(space[at:at + 8] == b"%%08d" %% turn for at in range(0, SIZE, 4096))
open("result.part", "w").write("good %%d" %% turn if good else "wrong")
os.rename("result.part", "result")
"""


def crowded():
    """A file that is written over as a whole, by memory, between any two checkpoints, on a disk that cannot hold as many of them as are
    to be kept: the oldest checkpoint gives way."""
    for name in ["held", "once", "gone", "replaced", "ready", "go", "result", "more", "written"]:
        if os.path.exists(name):
            os.remove(name)
    there = os.statvfs(".")
    size = there.f_bavail * there.f_frsize // 9 // MIB * MIB
    job = Job("python3", "-c", WHOLE % size, options=("--file-limit", "4MiB", "--keep", "20"))
    ready()
    for turn in range(10):
        text = job.checkpoint()
        must("no-room" not in text, text)
        write("more", "")
        until("the file to be written over", lambda: os.path.exists("written") or job.keeper.poll() is not None)
        must(job.keeper.poll() is None, read("job.err"))
        os.remove("more")
        os.remove("written")
    kept = len(set(clones().values()))
    # Two are from before.
    must(1 <= kept < 12, f"{kept} checkpoints on this disk")
    job.crash()
    found = result()
    must(found == "good 9", found)
    job.end()


if os.geteuid() != 0:
    lacks("only root mounts")
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
must(LIBC.unshare(CLONE_NEWNS) == 0 and LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0, "no namespace of mounts")
HERE = os.getcwd()
for kind, make in [("xfs", ["mkfs.xfs", "-q", "-m", "reflink=1"]), ("btrfs", ["mkfs.btrfs", "-q"])]:
    on(kind, make)
    job = rounds()
    job = killed(job)
    damaged(job)
    alone()
    if kind == "xfs":
        full()
        # What Btrfs says is free is not exact enough to fill one to the brim.
        crowded()
    os.chdir(HERE)
    end_all()
    subprocess.run(["umount", kind], check=False)
