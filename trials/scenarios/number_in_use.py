"""The number of a process or of a thread is taken: the error names the holder, and --new-pids brings the program back."""
from scenario import *

program = compile_c("threaded", r"""
static void *second(void *p) { (void)p; until("go"); return p; }
int main(void) {
    pthread_t t;
    MUST(!pthread_create(&t, 0, second, 0));
    say("ready", "");
    MUST(!pthread_join(t, 0));
    say("result", "right");
    return 0;
}
""")
if os.geteuid() != 0 or not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
    lacks("the right to choose a process number")


def take(number, *command):
    """Starts a process with this number."""
    for _ in range(200):
        write_number(number - 1)
        holder = start(*(command or ["sleep", "1000"]))
        if holder.pid == number:
            # Who comes next must not take another number of the program.
            write_number(number + 100)
            return holder
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    fail(f"could not take the number {number}")


def write_number(number):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(number))


child = start(program)
ready()
threads = sorted(map(int, os.listdir(f"/proc/{child.pid}/task")))
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
for number in threads:
    holder = take(number)
    for command in [["check", "image"], ["restore", "image"]]:
        text = hdcr(*command, ok=False)
        must(str(number) in text and "sleep" in text, f"{command[0]} does not name the holder of {number}: {text}")
        must("--new-pids" in text, f"{command[0]} does not name the remedy")
    must(holder.poll() is None, "the holder was harmed")
    front = subprocess.Popen([HDCR, "restore", "image", "--new-pids"], stdin=subprocess.DEVNULL)
    must(result() == "right", read("result"))
    until("the end of the restore", lambda: front.poll() is not None)
    must(front.returncode == 0, f"restore --new-pids ended with {front.returncode}")
    os.remove("go")
    os.remove("result")
    kill(holder.pid)

    # Its leader has ended, and the number is still that of a session.
    away = "echo $(($$ + 50)) > /proc/sys/kernel/ns_last_pid; sleep 1000 & echo $! > member"
    holder = take(number, "sh", "-c", away)
    holder.wait()
    # It may be a shell still, which has not become the command yet.
    until("the member to be what it is to be", lambda: read(f"/proc/{read('member').strip()}/comm") == "sleep\n")
    for command in [["check", "image"], ["restore", "image"]]:
        text = hdcr(*command, ok=False)
        right = "pid-taken" in text and f"process number {number}" in text and "session of sleep" in text
        must(right and read("member").strip() in text and "--new-pids" in text, f"{command[0]}, a session: {text}")
    os.killpg(number, signal.SIGKILL)
    gone(int(read("member")))

    # It has ended, and its parent has not waited for it yet: a restore waits, and so that is no obstacle.
    holder = take(number)
    os.killpg(number, signal.SIGKILL)
    until("the end of the holder", lambda: status(number, "State")[:1] == "Z")
    text = hdcr("check", "image")
    must("is possible" in text and "[pid-waits]" in text and str(os.getpid()) in text, f"a zombie: {text}")
    front = subprocess.Popen([HDCR, "restore", "image"], stdin=subprocess.DEVNULL)
    holder.wait()
    must(result() == "right", read("result"))
    until("the end of the restore", lambda: front.poll() is not None)
    must(front.returncode == 0, f"restore ended with {front.returncode}")
    os.remove("go")
    os.remove("result")
