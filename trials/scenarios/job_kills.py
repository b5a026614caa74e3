"""A parallel job whose members exchange data at every step loses a member, an agent and its coordinator, again and again, and ends with the right results."""
import json
import random

from scenario import *
from scenario import status as of_proc

MEMBERS, STEPS = 3, 2500
MASK = (1 << 64) - 1

# Each member has two places for its value on a board that all share; who is a step behind still finds the one before. A value
# is made of one's own and both neighbours', by a child at the other end of two pipes. A neighbour that is further ahead, or
# behind, than it can be tells of members that were not brought back to one instant.
PROGRAM = compile_c("board", r"""
typedef unsigned long long u64;
struct place { u64 step, value; };
static u64 mix(u64 a, u64 b, u64 c) {
    u64 x = a * 6364136223846793005ull + (b ^ (c << 1 | c >> 63)) + 1442695040888963407ull;
    return x ^ x >> 29;
}
static void whole(ssize_t (*call)(int, void *, size_t), int fd, void *bytes, size_t size) {
    char *at = bytes;
    while (size) {
        ssize_t done = call(fd, at, size);
        if (done <= 0) _exit(9);
        at += done; size -= done;
    }
}
static ssize_t put(int fd, void *bytes, size_t size) { return write(fd, bytes, size); }
static u64 seen(int board, int who, u64 step) {
    struct place place;
    for (;;) {
        if (pread(board, &place, sizeof place, (who * 2 + step % 2) * sizeof place) == sizeof place) {
            if (place.step == step) return place.value;
            if (place.step > step) { fprintf(stderr, "at %llu: member %d is at %llu\n", step, who, place.step); _exit(7); }
        }
        usleep(300);
    }
}
int main(int argc, char **argv) {
    int me = atoi(getenv("HDCR_MEMBER")), all = atoi(getenv("HDCR_MEMBERS")), down[2], up[2];
    u64 steps = strtoull(argv[1], 0, 10), asked[3];
    MUST(argc == 2 && !pipe(down) && !pipe(up));
    if (fork() == 0) {
        close(down[1]); close(up[0]);
        for (;;) {
            whole(read, down[0], asked, sizeof asked);
            u64 answer = mix(asked[0], asked[1], asked[2]);
            whole(put, up[1], &answer, sizeof answer);
        }
    }
    close(down[0]); close(up[1]);
    char name[64];
    int board = open("board.data", O_RDWR | O_CREAT, 0644);
    snprintf(name, sizeof name, "log.%d", me);
    int log = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
    struct place own = { 1, me + 1 };
    for (; own.step <= steps; own.step++) {
        MUST(pwrite(board, &own, sizeof own, (me * 2 + own.step % 2) * sizeof own) == sizeof own);
        asked[0] = own.value;
        asked[1] = seen(board, (me + 1) % all, own.step);
        asked[2] = seen(board, (me + all - 1) % all, own.step);
        whole(put, down[1], asked, sizeof asked);
        whole(read, up[0], &own.value, sizeof own.value);
        if (own.step % 100 == 0) dprintf(log, "%llu %016llx\n", own.step, own.value);
        usleep(2000);
        /* On a slow machine too all blows meet a job that runs. */
        while (own.step + 300 == steps && access("enough", F_OK)) usleep(2000);
    }
    close(down[1]);
    wait(0);
    char text[64];
    snprintf(name, sizeof name, "result.%d", me);
    snprintf(text, sizeof text, "%016llx", own.value);
    say(name, text);
    return 0;
}
""")


def expected():
    """Results and logs of an undisturbed run."""
    values = [n + 1 for n in range(MEMBERS)]
    logs = [""] * MEMBERS
    for step in range(1, STEPS + 1):
        def mixed(me):
            b, c = values[(me + 1) % MEMBERS], values[(me - 1) % MEMBERS]
            x = (values[me] * 6364136223846793005 + (b ^ ((c << 1 | c >> 63) & MASK)) + 1442695040888963407) & MASK
            return x ^ x >> 29
        values = [mixed(me) for me in range(MEMBERS)]
        if step % 100 == 0:
            logs = [log + f"{step} {value:016x}\n" for log, value in zip(logs, values)]
    return [f"{value:016x}" for value in values], logs


def coordinator():
    """Starts the job, or goes on with it."""
    words = [HDCR, "-v", "job", "run", "--name", "board", "--members", str(MEMBERS), "--every", "700ms", "--restarts", "20",
             "--output", "output"]
    return subprocess.Popen([*words, "--", PROGRAM, str(STEPS)], stdin=subprocess.DEVNULL, stdout=open("job.out", "a"),
                            stderr=open("job.err", "a"), start_new_session=True)


def status():
    """What the coordinator says; nothing while it is not there."""
    done = subprocess.run([HDCR, "job", "status", "board", "--json"], capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        return {}


def all_run(rollbacks):
    """Whether all runs after more than so many rollbacks, and has been checkpointed since."""
    found = status()
    runs = found.get("state") in ("running", "checkpointing") and found["rollbacks"] >= rollbacks
    return found if runs and all(member["takes_part"] and member["host"] for member in found["members"]) else None


def checkpoint():
    """One checkpoint, now; a round may be in the way of a kill that came before."""
    until("a checkpoint", lambda: subprocess.run([HDCR, "job", "checkpoint", "board"], capture_output=True).returncode == 0)


def processes(what):
    """Processes whose command line has all these words."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = read(f"/proc/{pid}/cmdline").split("\0")
        if all(any(word.startswith(wanted) for word in words) for wanted in what):
            found.append(int(pid))
    return found


def program(member):
    """The program of a member, by its number: that of its processes whose parent is another program."""
    own = [pid for pid in processes([PROGRAM]) if read(f"/proc/{pid}/cmdline").startswith(PROGRAM)]
    of_member = [pid for pid in own if f"HDCR_MEMBER={member}\0" in read(f"/proc/{pid}/environ")]
    return next((pid for pid in of_member if of_proc(pid, "PPid") not in map(str, own)), None)


def strike(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


job = coordinator()
until("the first checkpoint", lambda: (status() or {}).get("checkpoint"), 40)
rollbacks = 0
seed = random.randrange(1 << 32)
print(f"seed {seed}", flush=True)
dice = random.Random(seed)
blows = ["member", "agent", "coordinator", "all", *dice.choices(["member", "agent", "coordinator"], k=2)]
for blow in blows:
    checkpoint()
    member = dice.randrange(MEMBERS)
    print(f"{blow} {member}: {status()}", flush=True)
    if blow in ("member", "all"):
        strike(until(f"the program of member {member}", lambda: program(member)))
    if blow in ("agent", "all"):
        for pid in processes(["--inside=", "__agent", "--member", str((member + 1) % MEMBERS)]):
            strike(pid)
    if blow in ("coordinator", "all"):
        job.kill()
        job.wait()
        job = coordinator()
    rollbacks += blow != "coordinator"
    until(f"the job after the loss of {blow}", lambda: all_run(rollbacks), 40)
    must(job.poll() is None, f"hdcr job run ended: {read('job.err')[-500:]}")
write("enough", "")
until("the end of the job", lambda: job.poll() is not None, 60)
must(job.returncode == 0, f"hdcr job run: {job.returncode}: {read('job.err')[-500:]}")
results, logs = expected()
for member in range(MEMBERS):
    must(read(f"result.{member}") == results[member], f"member {member}: {read(f'result.{member}')}, not {results[member]}")
    must(read(f"log.{member}") == logs[member], f"the log of member {member} is another one")
must(read("job.err").count("rolled back to") >= 3, "nothing was rolled back: " + read("job.err"))
until("the end of all agents", lambda: (reap(), not processes(["--inside=", "__agent"]))[1])
print(read("job.err"))
