"""A week-long job meets a reboot: clocks begin anew, /tmp, /dev/shm and /run are empty; `run` and `restore` go on by its name."""
import shutil
from scenario import *

WORK = r"""
import mmap, os, time

os.makedirs("/tmp/reboot-work", exist_ok=True)
log = open("/tmp/reboot-work/log", "a+", buffering=1)
shared = open("/dev/shm/reboot-state", "w+b")
shared.truncate(4096)
state = mmap.mmap(shared.fileno(), 4096)
count = open("count", "w", buffering=1)
clocks = [time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME]
last = [time.clock_gettime(clock) for clock in clocks]
for number in range(1, 201):
    time.sleep(0.02)
    now = [time.clock_gettime(clock) for clock in clocks]
    # Neither back nor by leaps: what a timer waits for would come too late or at once.
    assert all(0 < new - old < 60 for new, old in zip(now, last)), (last, now)
    last = now
    assert int.from_bytes(state[:8], "little") == number - 1, state[:8]
    state[:8] = number.to_bytes(8, "little")
    print(number, file=log)
    print(number, file=count)
log.seek(0)
assert log.read().splitlines() == [str(number) for number in range(1, 201)], "the log"
assert os.stat("/tmp/reboot-work/log").st_ino == os.fstat(log.fileno()).st_ino, "the log has no name"
assert os.stat("/dev/shm/reboot-state").st_ino == os.fstat(shared.fileno()).st_ino, "the state has no name"
open("result", "w").write("right")
raise SystemExit(7)
"""

# A machine: the scenario's folder is its disk.
BOOT = r"""
set -e
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /tmp
mkdir -p "$1"
mount --move /mnt "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount --bind "$2" /proc/sys/kernel/random/boot_id
cd "$3"
shift 3
exec "$@"
"""

here = os.getcwd()
disk = os.path.dirname(here)
shutil.copy(HDCR, "hdcr")
write("work.py", WORK)
AHEAD = ["--time", "--monotonic", "5000000", "--boottime", "5000000"]
if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", *AHEAD, "true"], capture_output=True).returncode != 0:
    lacks("the right to make mount and time namespaces")


def boot(number, clocks, *command):
    """A machine that runs one command of the product; what it says is in `said`."""
    write("boot_id", f"00000000-0000-4000-8000-{number:012}\n")
    words = ["unshare", "--mount", *clocks, "sh", "-c", BOOT, "sh", disk, f"{here}/boot_id", here]
    return start(*words, f"{here}/hdcr", *command, stdout=open("said", "w"), stderr=subprocess.STDOUT)


def counted():
    """How far the program is."""
    return len(read("count").splitlines())


for number, way in enumerate(["run", "restore"]):
    for name in ["count", "result"]:
        if os.path.exists(name):
            os.remove(name)
    run = ["run", "--name", f"week-{way}", "--every", "1h", "--", "/usr/bin/python3", "work.py"]
    machine = boot(2 * number, AHEAD, *run)
    until("the program's work", lambda: counted() > 20)
    beside = ["nsenter", f"--target={machine.pid}", "--mount", f"--time=/proc/{machine.pid}/ns/time"]
    done = subprocess.run([*beside, f"{here}/hdcr", "checkpoint", f"week-{way}"], capture_output=True, text=True)
    must(done.returncode == 0, f"the checkpoint: {done.stdout}{done.stderr}")
    so_far = counted()
    until("work after the checkpoint", lambda: counted() > so_far + 10)
    # The power goes: the keeper first, or it would roll back.
    victims = [machine.pid, *below(machine.pid)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    machine.wait()
    for pid in victims[1:]:
        gone(pid)
    machine = boot(2 * number + 1, [], *(run if way == "run" else ["restore", f"week-{way}"]))
    until("the end of the job", lambda: machine.poll() is not None, 40)
    must(machine.returncode == 7, f"{way}: ended with {machine.returncode}: {read('said')[-400:]}")
    must(read("result") == "right", f"{way}: {read('said')[-400:]}")
    must(read("count").splitlines() == [str(i) for i in range(1, 201)], f"{way}: numbers lost or twice")
