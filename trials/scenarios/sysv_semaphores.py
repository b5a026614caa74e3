"""System V semaphores: values of the program's own sets go back with it, those of sets that others use as well stay."""
import subprocess

from scenario import *

if not os.access("/proc/sys/kernel/sem_next_id", os.W_OK):
    lacks("only root makes sets again")
program = compile_c("semaphores", r"""
#include <sys/ipc.h>
#include <sys/sem.h>
static int set(int id, int number, int value) { return semctl(id, number, SETVAL, value); }
static int up(int id, int number, int by) { struct sembuf op = { number, by, 0 }; return semop(id, &op, 1); }
int main(int argc, char **argv) {
    int own = semget(IPC_PRIVATE, 3, 0600), gone = semget(IPC_PRIVATE, 2, 0640), others = atoi(argv[1]);
    char text[80];
    if (fork() == 0) {
        MUST(own >= 0 && gone >= 0 && !set(own, 1, 7));
        say("child", "");
        for (;;) pause();
    }
    until("child");
    MUST(!set(own, 0, 5) && !up(own, 0, 1) && !set(gone, 0, 2) && !set(gone, 1, 30000) && !up(others, 0, 1));
    snprintf(text, sizeof text, "%d %d", own, gone);
    say("ready", text);
    until("later");
    snprintf(text, sizeof text, "%d %d %d, %d %d", semctl(own, 0, GETVAL), semctl(own, 1, GETVAL),
        semctl(own, 2, GETVAL), semctl(gone, 0, GETVAL), semctl(gone, 1, GETVAL));
    MUST(!up(own, 0, -4) && !up(own, 1, 3) && !set(own, 2, 9) && !up(gone, 1, -1) && !up(others, 0, 1));
    say("found", text);
    for (;;) pause();
}
""")
outsider = compile_c("outsider", r"""
#include <sys/ipc.h>
#include <sys/sem.h>
int main(void) {
    int id = semget(IPC_PRIVATE, 2, 0600);
    char text[32];
    struct sembuf op = { 1, 1, 0 };
    MUST(!semop(id, &op, 1));
    snprintf(text, sizeof text, "%d", id);
    say("outsider.id", text);
    for (;;) {
        if (access("count", F_OK) == 0) {
            unlink("count");
            snprintf(text, sizeof text, "%d", semctl(id, 0, GETVAL));
            say("counted", text);
        }
        usleep(2000);
    }
}
""")
sets = []


def remove(one):
    """A set outlives every process."""
    return subprocess.run(["ipcrm", "-s", one], check=False, capture_output=True)


def live_on(root):
    """Lets a life look at its sets, go on to change them, and end."""
    write("later", "")
    found = until("what it finds", lambda: read("found"))
    for pid in [root, *below(root)]:
        try:
            kill(pid)
        except ProcessLookupError:
            # With the first process of a pid namespace all others end.
            pass
    os.remove("later")
    os.remove("found")
    return found


atexit.register(lambda: [remove(one) for one in sets])
start(outsider)
ready("outsider.id")
others = read("outsider.id")
sets.append(others)
child = start(program, others)
ready()
own, lost = read("ready").split()
sets += [own, lost]
said = hdcr("checkpoint", child.pid, "-o", "image")
named = re.findall(r"\[semaphore-outside\] System V semaphores (\d+)", said)
must(named == [others], f"named as used by others: {named}, not {others}")
first = live_on(child.pid)
must(first == "6 7 0, 2 30000", f"at first {first}")
must(remove(lost).returncode == 0, "ipcrm")
# Made anew, and put back; and so from a checkpoint of a life that has not used them yet.
hdcr("checkpoint", restore("image"), "-o", "image.2")
second = live_on(int(read("pidfile")))
must(second == first, f"after a restore {second}")
third = live_on(restore("image.2"))
must(third == first, f"after the second restore {third}")
write("count", "")
counted = until("the outsider's count", lambda: read("counted"))
# Once at the beginning, and once by each life.
must(counted == "4", f"the set of both counts {counted}")
# Somebody else has come to use a set, and lives: it is named, and stays.
thief = compile_c("thief", r"""
#include <sys/ipc.h>
#include <sys/sem.h>
int main(int argc, char **argv) {
    MUST(!semctl(atoi(argv[1]), 0, SETVAL, 50) && (argc > 2 || !semctl(atoi(argv[1]), 2, SETVAL, 99)));
    say("taken", "");
    for (;;) pause();
}
""")
stranger = start(thief, own)
ready("taken")
said = hdcr("restore", "image.2", "--detach", "--pidfile", "pidfile")
must(f"[semaphore-outside] System V semaphores {own}" in said, "that others use it now is not said")
fourth = live_on(int(read("pidfile")))
must(fourth == "50 10 99, 2 30000", f"with others {fourth}")
kill(stranger.pid)

# A private pid namespace does not show who used them: it was the dead tree alone.
for one in ["ready", "child"]:
    os.remove(one)
child = start(program, others)
ready()
sets += read("ready").split()
hdcr("checkpoint", child.pid, "-o", "image.3")
first = live_on(child.pid)
must(first == "6 7 0, 2 30000", f"again at first {first}")
said = hdcr("restore", "image.3", "--detach", "--pidfile", "pidfile", "--new-pids")
must("[semaphore-outside]" not in said, "the dead tree is taken for somebody else")
fifth = live_on(int(read("pidfile")))
must(fifth == first, f"in a private pid namespace {fifth}")

# The program has made its set again since, under the same key: the new one is removed, or stays when others have come to it.
again = compile_c("again", r"""
#include <sys/ipc.h>
#include <sys/sem.h>
static void make(const char *word, int value) {
    key_t key = 0x6c000000 | getpid();
    int id = semget(key, 2, IPC_CREAT | IPC_EXCL | 0600);
    char text[64];
    MUST(id >= 0 && !semctl(id, 1, SETVAL, value));
    snprintf(text, sizeof text, "%d %d", id, key);
    say(word, text);
}
int main(void) {
    make("made", 5);
    until("later");
    int id = semget(0x6c000000 | getpid(), 2, 0600), own = -1;
    char text[64];
    FILE *file = fopen("made", "r");
    MUST(file && fscanf(file, "%d", &own) == 1);
    snprintf(text, sizeof text, "%d %d", own == id, semctl(own, 1, GETVAL));
    MUST(!semctl(own, 0, IPC_RMID));
    make("newer", 6);
    say("found", text);
    for (;;) pause();
}
""")
child = start(again)
ready("made")
made, key = read("made").split()
sets.append(made)
hdcr("checkpoint", child.pid, "-o", "image.4")
first = live_on(child.pid)
must(first == "1 5", f"the set to be made again at first {first}")
newer = read("newer").split()[0]
sets.append(newer)
said = hdcr("restore", "image.4", "--detach", "--pidfile", "pidfile")
must(f"[semaphore-newer] System V semaphores {newer}" in said, "that the newer set is removed is not said")
second = live_on(int(read("pidfile")))
must(second == first, f"the set made again {second}")
newer = read("newer").split()[0]
sets.append(newer)
os.remove("taken")
stranger = start(thief, newer, "first")
ready("taken")
said = hdcr("restore", "image.4", "--detach", "--pidfile", "pidfile", ok=False)
must(f"[semaphore-taken] System V semaphores {made}" in said, "the set of somebody else is not named")
kill(stranger.pid)
