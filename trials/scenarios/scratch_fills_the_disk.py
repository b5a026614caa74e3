"""A job that writes a large scratch file again after each roll-back, on a disk with room for one: what earlier lives have left
behind is given up in time; where there is room it stays."""
from scenario import *

PROGRAM = """
import os, time
turn = 0
open("ready", "w").close()
while not os.path.exists("go"):
    turn += 1
    if os.path.exists("more") and not os.path.exists("written"):
        os.mkdir("work")
        for name in ("scratch", "work/scratch"):
            with open(name, "wb") as file:
                for at in range(%d):
                    file.write(b"x" * (1 << 20))
        open("written", "w").close()
    time.sleep(0.002)
open("result.part", "w").write("good")
os.rename("result.part", "result")
"""
ROOM = 96

if os.geteuid() != 0:
    lacks("only root mounts")
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
must(LIBC.unshare(CLONE_NEWNS) == 0 and LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0, "no namespace of mounts")
HERE = os.getcwd()
for half, stays in ((28, False), (8, True)):
    folder = f"disk-{half}"
    os.mkdir(folder)
    must(LIBC.mount(b"none", folder.encode(), b"tmpfs", 0, b"size=%dm" % ROOM) == 0, "no tmpfs")
    os.chdir(folder)
    job = Job("python3", "-c", PROGRAM % half, stdout=open("../job.out", "w"))
    ready()
    job.checkpoint()
    for life in range(3):
        write("more", "")
        until("the scratch file", lambda: os.path.exists("written") or job.keeper.poll() is not None)
        must(job.keeper.poll() is None, f"no room in life {life}: {read('job.err')}")
        os.remove("more")
        job.crash()
        until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
        # What it left is given up when the program runs again.
        until("room", lambda: os.statvfs(".").f_bavail * os.statvfs(".").f_frsize >= half << 21)
    must(result() == "good", "wrong")
    job.end()
    left = [name for name in os.listdir(".") if name.startswith(".hdcr-aside-")]
    sizes = [os.path.getsize(os.path.join(top, name)) for found in left for top, _, names in os.walk(found) for name in names]
    must((len([size for size in sizes if size == half << 20]) >= 2) == stays, f"{half}: {left} {sizes}")
    os.chdir(HERE)
