"""Where blocks are smaller than pages, data behind a hole in the same page comes back, held open, closed, and by a roll-back."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can mount")
PLACES = [(1500, b"A" * 100), (9 * 1024 + 5, b"B" * 100), (15 * 1024, b"C" * 1024), (39 * 1024, b"D"), (64 * 1024 + 700, b"E" * 5000)]
PROGRAM = f"""
import os, time
PLACES = {PLACES!r}
def make(name):
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    for at, what in PLACES:
        os.pwrite(file, what, at)
    os.fsync(file)
    return file
held = make("held")
os.close(make("closed"))
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def whole():
    """What such a file must hold."""
    text = bytearray(max(at + len(what) for at, what in PLACES))
    for at, what in PLACES:
        text[at:at + len(what)] = what
    return bytes(text)


def found(name):
    """What it holds."""
    with open(name, "rb") as file:
        return file.read()


for kind in (["ext4", "-b", "1024"], ["xfs", "-b", "size=1024"]):
    if subprocess.run(["sh", "-c", f"command -v mkfs.{kind[0]}"], capture_output=True, check=False).returncode:
        lacks(f"mkfs.{kind[0]}")
    with open("disk", "wb") as disk:
        disk.truncate(350 << 20)
    subprocess.run([f"mkfs.{kind[0]}", "-q", *kind[1:], "disk"], check=True, capture_output=True)
    os.makedirs("at", exist_ok=True)
    if subprocess.run(["mount", "-o", "loop", "disk", "at"], capture_output=True, check=False).returncode:
        lacks(f"a loop mount of {kind[0]}")
    try:
        os.chdir("at")
        job = Job("python3", "-c", PROGRAM)
        ready()
        job.checkpoint("--files", os.path.abspath("closed"))
        for name in ("held", "closed"):
            must(found(name) == whole(), f"{kind}: {name} is wrong before anything was done")
            with open(name, "r+b") as file:
                file.truncate(0)
        job.crash()
        until("the roll-back", lambda: all(os.path.getsize(name) for name in ("held", "closed")))
        for name in ("held", "closed"):
            must(found(name) == whole(), f"{kind}: {name} has not come back")
        write("go", "")
        job.end()
    finally:
        os.chdir("..")
        end_all()
        subprocess.run(["umount", "at"], check=False)
    os.remove("disk")
