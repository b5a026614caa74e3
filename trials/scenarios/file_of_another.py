"""A restore finds another program's file where its own was: nothing of it is lost, and the user is told."""
from scenario import *

PROGRAM = "exec 3<>d/f; i=0; while [ ! -e go ]; do i=$((i+1)); echo $i >&3; sleep 0.002; done; echo end >&3; cp /proc/self/fd/3 result"
FOREIGN = "important data of another program\n" * 20


def image(name):
    os.makedirs("d", exist_ok=True)
    for old in ("go", "result", "d/f"):
        if os.path.exists(old):
            os.remove(old)
    write("d/f", "")
    program = start("bash", "-c", PROGRAM)
    until("output", lambda: len(read("d/f").splitlines()) > 20)
    hdcr("checkpoint", program.pid, "-o", name, "--kill")
    gone(program.pid)
    return read("d/f")


def back(name, code, path):
    """Restores, says what the note names, and lets the program end."""
    if os.path.exists("pidfile"):
        os.remove("pidfile")
    text = hdcr("restore", name, "--detach", "--pidfile", "pidfile")
    must(f"[{code}]" in text, "nothing is said: " + text)
    write("go", "")
    lines = until("the program's result", lambda: read("result").splitlines() if read("result").endswith("end\n") else None)
    must(lines == [str(i + 1) for i in range(len(lines) - 1)] + ["end"], "the program's file is wrong")
    return text


image("one.hdcr")
os.remove("d/f")
write("d/f", FOREIGN)
said = back("./one.hdcr", "rollback-replaced", "d/f")
kept = re.search(r"what it held is in (\S+)", said).group(1)
must(read(kept) == FOREIGN, "what the other file held is not kept")
image("two.hdcr")
os.rename("d", "moved")
os.mkdir("d")
write("d/f", FOREIGN)
back("./two.hdcr", "rollback-moved", "d/f")
must(read("d/f") == FOREIGN, "a file of somebody else was changed")
