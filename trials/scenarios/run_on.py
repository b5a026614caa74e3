"""`hdcr run --on`: which ends roll a job back, and which end it, by status and by signal, named and any."""
from scenario import *

program = compile_c("program", r"""
static volatile sig_atomic_t asked;
static void hear(int signal) { asked = signal; }
int main(void) {
    int counted = 0;
    sigset_t none, all;
    sigemptyset(&none);
    sigemptyset(&all);
    struct sigaction a = { .sa_handler = hear };
    int heard[] = { SIGUSR1, SIGUSR2, SIGALRM, SIGCONT };
    for (int i = 0; i < 4; i++) { sigaction(heard[i], &a, 0); sigaddset(&all, heard[i]); }
    sigprocmask(SIG_BLOCK, &all, 0);
    say("ready", "");
    for (;; asked = 0) {
        sigsuspend(&none);
        if (asked == SIGUSR1) _exit(75);
        if (asked == SIGUSR2) _exit(3);
        if (asked == SIGCONT) _exit(0);
        if (asked == SIGALRM) {
            char text[16];
            snprintf(text, sizeof text, "%d", ++counted);
            say("counted", text);
        }
    }
}
""")
# Blows that end the program, and the status that the job then has.
EXIT_75, EXIT_3, EXIT_0 = (signal.SIGUSR1, 75), (signal.SIGUSR2, 3), (signal.SIGCONT, 0)
TERM, INT, HUP, USR = ((number, 128 + number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPROF))
# What is asked for, what is then rolled back, and what ends the job all the same.
RULES = [
    ([], [USR], EXIT_75),
    ([], [], TERM),
    (["--on", "exit:75"], [EXIT_75, USR], EXIT_3),
    (["--on", "exit:75"], [], TERM),
    (["--on", "exit:any"], [EXIT_75, EXIT_3], EXIT_0),
    (["--on", "exit:any"], [], INT),
    (["--on", "exit:0"], [EXIT_0], EXIT_75),
    (["--on", "signal:TERM"], [TERM], INT),
    (["--on", "signal:int", "--on", "signal:1"], [INT, HUP], TERM),
    (["--on", "signal:any"], [TERM, INT, HUP], EXIT_75),
    (["--on", "exit:3,signal:HUP"], [EXIT_3, HUP], EXIT_75),
]


def count(pid):
    """How often the memory of this program says that it was asked."""
    if os.path.exists("counted"):
        os.remove("counted")
    os.kill(pid, signal.SIGALRM)
    return int(until("the count", lambda: read("counted")))


def begin(*options, restarts=9):
    """A job whose program has counted to 2 at its checkpoint, and to 3 since."""
    if os.path.exists("ready"):
        os.remove("ready")
    job = Job(program, restarts=restarts, options=["--fresh", *options])
    ready()
    main = job.main()
    must([count(main[0]), count(main[0])] == [1, 2], "it does not count")
    job.checkpoint()
    must(count(main[0]) == 3, "it does not count on")
    return job, main


for options, back, last in RULES:
    job, main = begin(*options)
    for done, (number, _) in enumerate(back):
        os.kill(main[0], number)
        main = job.main(other_than=main)
        until("the word of it", lambda: read("job.err").count("rolled back to") == done + 1)
        must(count(main[0]) == 3, f"{options}: signal {number}: not the memory of the checkpoint")
    os.kill(main[0], last[0])
    job.end(expected=last[1])
    must(read("job.err").count("rolled back to") == len(back), f"{options}: {read('job.err')}")

# A signal that somebody passes on through the command is no crash, whatever any is asked for.
job, main = begin("--on", "signal:any,exit:any")
os.kill(job.keeper.pid, signal.SIGTERM)
job.end(expected=128 + signal.SIGTERM)
must("rolled back" not in read("job.err"), read("job.err"))

# So often and no more; and before the first checkpoint it begins anew.
job, main = begin("--on", "exit:75", restarts=1)
os.kill(main[0], EXIT_75[0])
main = job.main(other_than=main)
must(count(main[0]) == 3, "not rolled back")
os.kill(main[0], EXIT_75[0])
job.end(expected=75)
os.remove("ready")
job = Job(program, options=["--fresh", "--on", "exit:75"])
ready()
main = job.main()
must(count(main[0]) == 1, "it does not count")
os.remove("ready")
os.kill(main[0], EXIT_75[0])
main = job.main(other_than=main)
ready()
must(count(main[0]) == 1, "it has not begun anew")
os.kill(main[0], EXIT_3[0])
job.end(expected=3)

for wrong in ["exit", "exit:256", "signal:NOPE", "crash:1"]:
    must("signal:any" in hdcr("run", "--on", wrong, "--", "true", ok=False), f"{wrong} is not refused rightly")
