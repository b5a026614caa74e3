"""What the restoring command was given (processors, umask, signals, nice, limits) does not leak into the program."""
import resource
from scenario import *

program = compile_c("plain", r"""
int main(void) {
    signal(SIGUSR1, SIG_IGN);
    say("ready", "");
    until("go");
    say("result", "right");
    return 0;
}
""")


def facts(pid):
    wanted = ["Umask", "SigIgn", "SigBlk", "SigCgt", "SigPnd", "Cpus_allowed", "Groups", "CapEff", "NoNewPrivs", "Uid"]
    found = {field: status(pid, field) for field in wanted}
    # Whatever posix_spawn(3) of glibc starts ignores the two signals that glibc uses itself.
    found["SigIgn"] = f"{int(found['SigIgn'], 16) & ~(3 << 31):x}"
    found["limits"] = read(f"/proc/{pid}/limits")
    stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    found["nice"], found["policy"] = stat[16], stat[38]
    found["oom"] = read(f"/proc/{pid}/oom_score_adj")
    found["cwd"] = os.path.realpath(f"/proc/{pid}/cwd")
    found["slack"] = read(f"/proc/{pid}/timerslack_ns")
    return found


def odd():
    os.umask(0o077)
    os.nice(7)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for number in [signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGRTMIN + 3]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGQUIT, signal.SIGCHLD, signal.SIGRTMIN + 1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")
    LIBC.prctl(29, 123456, 0, 0, 0)
    os.chdir("/")


child = start(program, stdout=open("out", "w"))
ready()
before = facts(child.pid)
here = os.getcwd()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
for style in ["detached", "foreground"]:
    words = [HDCR, "restore", f"{here}/image", "--pidfile", f"{here}/pid"]
    words += ["--detach"] if style == "detached" else []
    front = subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=odd, start_new_session=True)
    pid = int(until("the restore", lambda: read("pid")))
    must(pid == child.pid, "another pid")
    if style == "detached":
        until("the end of the command", lambda: front.poll() is not None)
        must(front.returncode == 0, f"restore ended with {front.returncode}")
    after = facts(pid)
    for name, value in before.items():
        must(after[name] == value, f"{style}: {name} was {value}, is {after[name]}")
    os.remove("pid")
    if style == "detached":
        kill(pid)
must(result() == "right", read("result"))

# A job that `hdcr run` starts from such surroundings has them, as it would without; a rollback gives it the same ones.
for name in ["go", "ready", "result"]:
    os.remove(name)
job = Job(program, preexec_fn=lambda: (odd(), os.chdir(here)))
ready()
pid = job.main()[0]
before = facts(pid)
must("HDCR_SIGPIPE" not in read(f"/proc/{pid}/environ"), "a note of hdcr's own is in the environment of the program")
must(before["nice"] == str(min(os.nice(0) + 7, 19)) and before["Umask"] == "0077", "the program did not get its surroundings")
plain = subprocess.Popen([program], preexec_fn=lambda: (odd(), os.chdir(here)), cwd=here, stdin=subprocess.DEVNULL)
until("the plain program", lambda: int(status(plain.pid, "SigIgn") or "0", 16) & 0x200)
alone = facts(plain.pid)
for name, value in alone.items():
    must(before[name] == value, f"under hdcr run {name} is {before[name]}, without {value}")
plain.kill()
plain.wait()
job.checkpoint()
job.crash()
# While it is being restored it is not yet what it was.
end = time.monotonic() + 20
while facts(pid) != before and time.monotonic() < end:
    time.sleep(0.003)
for name, value in facts(pid).items():
    must(before[name] == value, f"rolled back: {name} was {before[name]}, is {value}")
must(result() == "right", read("result"))
job.end()
