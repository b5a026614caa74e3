"""A disk that is full to the last byte, of others' files and of the program's own: its job is rolled back all the same."""
from scenario import *

CLONE_NEWNS = 0x20000
WORK = r"""
import os, sys, time
out = open("disk/out", "wb", buffering=0)
count = open("count", "w", buffering=1)
for number in range(1, 201):
    out.write(b"%d\n" % number)
    print(number, file=count)
    if os.path.exists(f"fill-{number // 20}"):
        os.remove(f"fill-{number // 20}")
        at = out.tell()
        try:
            while True:
                out.write(bytes(65536))
        except OSError:
            pass
        open("filled", "w").close()
        time.sleep(1000)
    time.sleep(0.01)
raise SystemExit(7)
"""

if os.geteuid() != 0 or LIBC.unshare(CLONE_NEWNS) != 0:
    lacks("the right to make a mount namespace")
os.mkdir("disk")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "small", "disk"]).returncode != 0:
    lacks("a small disk")
os.environ["HDCR_STORE"] = os.path.abspath("disk/store")
write("work.py", WORK)


def counted():
    """How far the program is."""
    return len(read("count").splitlines())


def fill(name):
    """Takes all that is left of the disk."""
    with open(f"disk/{name}", "ab", buffering=0) as file:
        for piece in [65536, 4096, 1]:
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                pass
    disk = os.statvfs("disk")
    must(disk.f_bavail == 0, f"{disk.f_bavail} blocks are free")


COMMAND = ["/usr/bin/python3", "work.py"]
job = Job(*COMMAND)
until("some work", lambda: counted() > 5)
job.checkpoint()
must("no-reserve" not in read("job.err"), read("job.err"))
# What others have written, and then again while the job is rolled back.
for turn in range(4):
    so_far = counted()
    until("more work", lambda: counted() > so_far + 5)
    fill("others")
    job.crash()
    until("the word of it", lambda: read("job.err").count("rolled back to") == turn + 1)
# What it has written itself, much more than there is room for a copy of.
os.remove("disk/others")
number = counted() // 20 + 2
write(f"fill-{number}", "")
until("a disk filled by the program", lambda: os.path.exists("filled"))
fill("others")
job.crash()
until("the word of what is gone", lambda: "[rollback-no-room]" in read("job.err"))
# The keeper goes, too, and the same command goes on.
so_far = counted()
until("more work", lambda: counted() > so_far + 5)
fill("others")
victims = [job.keeper.pid, *below(job.keeper.pid)]
for pid in victims:
    os.kill(pid, signal.SIGKILL)
job.keeper.wait()
for pid in victims[1:]:
    gone(pid)
job = Job(*COMMAND)
job.end(7)
numbers = [str(number) for number in range(1, 201)]
must(read("count").splitlines() == numbers, f"count: {read('job.err')}")
must(read("disk/out").splitlines() == numbers, f"out: {read('job.err')}")
# As much is kept as before, and it goes with the job.
kept = f"disk/store/.rollback/{job.name}"
must(os.stat(f"{kept}/rollback.reserve").st_size > 0, "no room is kept any more")
hdcr("rm", job.name)
must(not os.path.exists(kept), "the room of a job that is gone is still kept")
