"""What `check` calls possible is not refused by `checkpoint`: a program in a frozen control group, of both kinds, and one over
whose current directory something is mounted."""
import shutil

from scenario import *

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
if os.geteuid() != 0 or LIBC.unshare(CLONE_NEWNS) != 0:
    lacks("this user may not mount")
must(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0, "the mounts stay shared")


def refused(pid, code):
    """Both refuse by name."""
    for words in (["check", pid], ["checkpoint", pid, "-o", "image", "--timeout", "5s"]):
        text = hdcr(*words, ok=False)
        must(f"[{code}]" in text, f"{words[0]} says: {text}")
    must(not os.path.exists("image"), "there is an image")


def groups():
    """Where each kind of freezer is mounted: the folder, how to freeze and to thaw."""
    for line in read("/proc/self/mountinfo").splitlines():
        place, kind = line.split(" - ")
        at, kind = place.split()[4], kind.split()
        if kind[0] == "cgroup2" and place.split()[3] == "/":
            yield at, ("cgroup.freeze", "1", "0", "cgroup.procs")
        elif kind[0] == "cgroup" and "freezer" in kind[2].split(","):
            yield at, ("freezer.state", "FROZEN", "THAWED", "tasks")


for at, (switch, freeze, thaw, members) in groups():
    group = f"{at}/hdcr-trial-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as error:
        print(f"{at}: {error}")
        continue
    if not os.path.exists(f"{group}/{switch}"):
        os.rmdir(group)
        continue
    program = start("sleep", "1000")
    try:
        with open(f"{group}/{members}", "w", encoding="utf-8") as file:
            file.write(str(program.pid))
        with open(f"{group}/{switch}", "w", encoding="utf-8") as file:
            file.write(freeze)
        until("the freeze", lambda: "FROZEN" in read(f"{group}/freezer.state") or "frozen 1" in read(f"{group}/cgroup.events"))
        refused(program.pid, "cgroup-frozen")
    finally:
        with open(f"{group}/{switch}", "w", encoding="utf-8") as file:
            file.write(thaw)
    hdcr("check", program.pid)
    hdcr("checkpoint", program.pid, "-o", "image")
    os.remove("image")
    program.kill()
    program.wait()
    until("an empty group", lambda: not read(f"{group}/{members}"))
    os.rmdir(group)

os.mkdir("below")
program = start("sleep", "1000", cwd="below")
must(LIBC.mount(b"tmpfs", b"below", b"tmpfs", 0, None) == 0, "no tmpfs can be mounted")
refused(program.pid, "path-hidden")
must(LIBC.umount2(b"below", 2) == 0, "the tmpfs stays")
hdcr("checkpoint", program.pid, "-o", "image")
shutil.rmtree("below")
