"""System V shared memory: left behind, removed, taken by somebody else, attached by outsiders, of an ordinary user."""
import subprocess

from scenario import *

if not os.access("/proc/sys/kernel/shm_next_id", os.W_OK):
    lacks("only root makes segments again")
program = compile_c("segments", r"""
#include <sys/ipc.h>
#include <sys/shm.h>
int main(int argc, char **argv) {
    key_t key = 0x6b000000 | getpid();
    int own = shmget(key, 9000, IPC_CREAT | IPC_EXCL | 0600), marked = shmget(IPC_PRIVATE, 4096, 0600);
    char *at = shmat(own, 0, 0), *mark = shmat(marked, 0, 0), text[80];
    MUST(own >= 0 && marked >= 0 && at != (void *)-1 && mark != (void *)-1 && !shmctl(marked, IPC_RMID, 0));
    at[8999] = 7; mark[5] = 9;
    snprintf(text, sizeof text, "%d %d", own, key);
    say("ready", text);
    for (;;) {
        until("later");
        struct shmid_ds ds;
        MUST(!shmctl(own, IPC_STAT, &ds));
        snprintf(text, sizeof text, "%d %d, %d %d, %d attached", at[8999], mark[5], at[0], mark[0], (int)ds.shm_nattch);
        at[8999] = mark[5] = at[0] = mark[0] = 1;
        unlink("later");
        say("found", text);
    }
}
""")
outsider = compile_c("outsider", r"""
#include <sys/ipc.h>
#include <sys/shm.h>
int main(int argc, char **argv) {
    MUST(shmat(atoi(argv[1]), 0, SHM_RDONLY) != (void *)-1);
    say("attached", "");
    for (;;) pause();
}
""")
segments = []


def remove(*which):
    """A segment outlives every process."""
    return subprocess.run(["ipcrm", *which], check=False, capture_output=True)


def look():
    """Lets the program look at its memory and go on to change it; what it found."""
    write("later", "", 0o666)
    found = until("what it finds", lambda: read("found"))
    os.remove("found")
    return found


def ended(image):
    """Ends the tree that was restored from an image."""
    kill(int(read("pidfile")))


atexit.register(lambda: [remove("-m", one) for one in segments])
child = start(program)
ready()
own, key = read("ready").split()
segments.append(own)
SOUND = "7 9, 0 0, 1 attached"

# Somebody outside has it attached: refused by name, and the program goes on.
other = start(outsider, own)
ready("attached")
said = hdcr("checkpoint", child.pid, "-o", "never", ok=False)
must(f"[segment-outside] System V shared memory {own} (pid {other.pid})" in said, "the outsider is not named")
kill(other.pid)
hdcr("check", child.pid)
hdcr("checkpoint", child.pid, "-o", "image")
must(look() == SOUND, "a checkpoint of what runs changes nothing")
must(look() == "1 1, 1 1, 1 attached", "it goes on")
kill(child.pid)

# The segment was left behind: back in place, whoever looks.
restore("image")
must(look() == SOUND, "left behind, in place")
os.remove("attached")
other = start(outsider, own)
ready("attached")
ended("image")
said = hdcr("restore", "image", "--detach", "--pidfile", "pidfile", ok=False)
must(f"[segment-taken] System V shared memory {own}" in said, "others have it attached")
kill(other.pid)

# Gone, and made again under its number and key; then by an image of that life.
must(remove("-m", own).returncode == 0, "ipcrm")
hdcr("checkpoint", restore("image"), "-o", "image.2")
must(look() == SOUND, "made again")
ended("image")
must(remove("-M", key).returncode == 0, "its key")
restore("image.2")
must(look() == SOUND, "made again from the second image")
ended("image.2")

# Somebody else has made one with its key.
must(remove("-m", own).returncode == 0, "ipcrm")
made = subprocess.run(["python3", "-c", f"""
import ctypes
print(ctypes.CDLL(None).shmget({key}, 9000, 0o1600))
"""], capture_output=True, text=True, check=True).stdout.strip()
segments.append(made)
said = hdcr("restore", "image", "--detach", "--pidfile", "pidfile", ok=False)
must(f"[segment-taken] System V shared memory {own}" in said and "key" in said, "another one has its key")
must(remove("-m", made).returncode == 0, "ipcrm")

# The dead maker of somebody else's had the number of a process of the tree: it stays as it is.
OTHER = """
import ctypes, sys
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
id = int(sys.argv[1]) if sys.argv[1:] else c.shmget(0, 4096, 0o1600)
at = ctypes.c_void_p(c.shmat(id, None, 0))
"""
maker = subprocess.Popen(["python3", "-c", OTHER + "print(id)"], stdout=subprocess.PIPE, text=True)
theirs = maker.communicate()[0].strip()
segments.append(theirs)
ended_at = time.time()
until("time to go on", lambda: time.time() > ended_at + 3)


def with_its_number():
    """Starts a program with the number of that maker."""
    with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
        last.write(str(maker.pid - 1))
    one = start("sleep", "1000")
    if one.pid != maker.pid:
        kill(one.pid)
        return None
    return one


child = until("a program with the number of the maker", with_its_number)
until("the program to be there", lambda: "python" not in os.readlink(f"/proc/{child.pid}/exe"))
said = hdcr("checkpoint", child.pid, "-o", "image.3")
must(f"[segment-left] System V shared memory {theirs}" in said, "that it is left is not said")
kill(child.pid)
subprocess.run(["python3", "-c", OTHER + "ctypes.memset(at, 7, 1)", theirs], check=True)
restore("image.3")
kept = subprocess.run(["python3", "-c", OTHER + "print(ctypes.string_at(at, 1)[0])", theirs], check=True,
                      capture_output=True, text=True).stdout.strip()
must(kept == "7", f"contents of somebody else's after a restore: {kept}")
ended("image.3")

# An ordinary user: what was left behind goes back, one that is marked comes under another number, one that is gone is refused.
os.mkdir("of_user")
os.chown("of_user", 65534, 65534)
os.chmod(".", 0o755)
os.chmod("..", 0o755)
os.chdir("of_user")
OWN = {name: os.getcwd() for name in ["HOME", "HDCR_STORE", "XDG_RUNTIME_DIR"]}
NOBODY = {"user": 65534, "group": 65534, "extra_groups": [], "env": {**os.environ, **OWN}}
if subprocess.run([HDCR, "--version"], capture_output=True, check=False, **NOBODY).returncode:
    lacks("another user cannot run this hdcr")
child = start(program, **NOBODY)
ready()
own, key = read("ready").split()
segments.append(own)
hdcr("checkpoint", child.pid, "-o", "image", **NOBODY)
must(look() == SOUND, "a checkpoint by an ordinary user changes nothing")
kill(child.pid)
said = hdcr("restore", "image", "--detach", "--pidfile", "pidfile", "--new-pids", **NOBODY)
must("[segment-renumbered]" in said, "the marked one has another number")
must(look() == SOUND, "left behind by an ordinary user")
ended("image")
must(remove("-m", own).returncode == 0, "ipcrm")
said = hdcr("restore", "image", "--detach", "--pidfile", "pidfile", "--new-pids", ok=False, **NOBODY)
must(f"[segment-number] System V shared memory {own}" in said, "an ordinary user may not choose numbers")
