"""What every scenario uses: the product as its user meets it, programs in C, bounded waits.

A scenario is a script of this folder. It runs in an empty folder of its own, with HDCR (the binary) and HDCR_STORE in
its environment; it ends with 0, with 77 when this machine lacks what it needs, or with another status, and its last
line says why. Nothing that it started outlives it.
"""

import atexit
import ctypes
import os
import re
import signal
import subprocess
import sys
import time

HDCR = os.environ["HDCR"]
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER = 36
# What the programs of scenarios begin with: they say that they are ready, and wait for the word to go on.
PRELUDE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
static inline void say(const char *file, const char *text) {
    char part[64];
    snprintf(part, sizeof part, "%s.part", file);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) abort();
    close(fd);
    if (rename(part, file)) abort();
}
static inline void until(const char *file) {
    for (int i = 0; i < 30000; i++) {
        if (access(file, F_OK) == 0) return;
        usleep(2000);
    }
    abort();
}
#define MUST(what) do { if (!(what)) { char t[256]; snprintf(t, sizeof t, "line %d: %s: %s", __LINE__, #what, \
    strerror(errno)); say("result", t); exit(1); } } while (0)
"""


def fail(why):
    """Ends the scenario."""
    print(why)
    sys.exit(1)


def lacks(what):
    """Ends a scenario that this machine cannot do."""
    print(what)
    sys.exit(77)


def must(true, why):
    """A scenario ends when something is not as it must be."""
    if not true:
        fail(why)


def until(what, ask, limit=20):
    """Asks until there is an answer."""
    end = time.monotonic() + limit
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            fail(f"waited {limit} s for {what}")
        time.sleep(0.003)


def read(path):
    """The text of a file, empty when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def write(path, text, mode=0o644):
    """A file, whole or not at all."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(f"{path}.part", mode)
    os.rename(f"{path}.part", path)
    return os.path.abspath(path)


def compile_c(name, text, *flags):
    """A program in C with the prelude."""
    write(f"{name}.c", f"{PRELUDE}\n{text}")
    done = subprocess.run(["gcc", "-O1", "-pthread", "-o", name, f"{name}.c", *flags], capture_output=True, text=True)
    must(done.returncode == 0, f"gcc: {done.stderr[-500:]}")
    return os.path.abspath(name)


def start(*command, **options):
    """Starts a program in a session of its own, so that nothing of it leads to this one."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.DEVNULL)
    return subprocess.Popen(list(command), start_new_session=True, **options)


def hdcr(*arguments, ok=True, limit=60, **options):
    """Runs one command of the product; its output. `ok`: whether it must succeed."""
    with open("hdcr.out", "w+", encoding="utf-8") as out:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", out)
        options.setdefault("stderr", out)
        began = time.monotonic()
        done = subprocess.run([HDCR, *map(str, arguments)], timeout=limit, check=False, **options)
        took = time.monotonic() - began
    text = read("hdcr.out")
    print(f"$ hdcr {' '.join(map(str, arguments))}  ({took * 1000:.0f} ms)\n{text}-> {done.returncode}", flush=True)
    if ok is not None:
        must((done.returncode == 0) == ok, f"hdcr {arguments[0]} ended with {done.returncode}: {text.strip()[-300:]}")
    return text


def restore(image, *options, **more):
    """Restores in the background; the pid of the root."""
    if os.path.exists("pidfile"):
        os.remove("pidfile")
    hdcr("restore", image, "--detach", "--pidfile", "pidfile", *options, **more)
    return int(read("pidfile"))


def reap():
    """Takes the status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def gone(pid):
    """Waits until no process has this number."""
    until(f"the end of {pid}", lambda: (reap(), not os.path.exists(f"/proc/{pid}"))[1])


def kill(pid):
    """Kills a process and waits for its end."""
    os.kill(pid, signal.SIGKILL)
    gone(pid)


def below(pid):
    """All processes below one, parents first."""
    found = []
    for child in read(f"/proc/{pid}/task/{pid}/children").split():
        found += [int(child), *below(int(child))]
    return found


def end_all():
    """Ends what this scenario has started."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        reap()
        left = below(os.getpid())
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.002)


def ready(what="ready"):
    """Waits for the word of the program."""
    until(f"the program's {what}", lambda: os.path.exists(what))


def result():
    """Lets the program go on; what it says in the end."""
    write("go", "")
    return until("the program's result", lambda: read("result"))


def status(pid, field):
    """A field of /proc/PID/status."""
    found = re.search(rf"^{field}:[ \t]*(.*)$", read(f"/proc/{pid}/status"), re.M)
    return found.group(1) if found else ""


def is_hdcr(pid):
    """Whether a process is the product, or gone."""
    try:
        return os.path.samefile(f"/proc/{pid}/exe", HDCR)
    except OSError:
        return True


class Job:
    """A program under `hdcr run`, with its own keeper."""

    def __init__(self, *command, every="1h", restarts=9, options=(), **streams):
        self.name = "trouble-" + os.path.basename(os.getcwd())
        words = ["run", "--name", self.name, "--every", every, "--restarts", str(restarts), *options, "--", *command]
        streams.setdefault("stdin", subprocess.DEVNULL)
        streams.setdefault("stdout", open("job.out", "w"))
        streams.setdefault("stderr", open("job.err", "w"))
        self.keeper = subprocess.Popen([HDCR, *words], start_new_session=True, **streams)

    def main(self, other_than=None):
        """The pid of the program, told from an earlier life by the time of its start."""
        def look():
            must(self.keeper.poll() is None, f"hdcr run ended: {read('job.err')[-300:]}")
            for pid in map(int, read(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").split()):
                stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
                if stat and stat[0] not in "ZX" and not is_hdcr(pid) and (pid, stat[19]) != other_than:
                    return (pid, stat[19])
            return None
        return until("the program to run (again)", look)

    def checkpoint(self, *options):
        """One checkpoint, now."""
        return hdcr("checkpoint", self.name, *options)

    def crash(self):
        """Kills the program; waits until it runs again."""
        old = self.main()
        os.kill(old[0], signal.SIGKILL)
        return self.main(other_than=old)

    def kill_all(self):
        """Kills the keeper and all below it at the same moment; waits until they are gone."""
        tree = [self.keeper.pid, *below(self.keeper.pid)]
        for pid in tree:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                # A command of a shell, which has ended meanwhile.
                pass
        self.keeper.wait()
        for pid in tree[1:]:
            gone(pid)

    def end(self, expected=0):
        """Waits for the end of the job."""
        until("the end of the job", lambda: self.keeper.poll() is not None, 40)
        must(self.keeper.returncode == expected, f"hdcr run: {self.keeper.returncode}: {read('job.err').strip()[-400:]}")


LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
atexit.register(end_all)
signal.signal(signal.SIGTERM, lambda *_: fail("took too long"))
