"""A stopped job that is restored with --detach stays stopped whatever ends beside the restoring command: the rest of its
pipeline, whichever place it has in it, and also when the program is of no group of its own."""
from scenario import *

write("shell.sh", """
set -m
# The first has a group of its own, the second is one of the group of another.
bash -c 'echo $BASHPID > own; while [ ! -e end ]; do sleep 0.01; done; echo right > result.own; exit 7' &
while [ ! -s own ]; do :; done
kill -STOP %1
bash -c '(echo $BASHPID > other; while [ ! -e end ]; do sleep 0.01; done; echo right > result.other) & sleep 1000' &
while [ ! -s other ]; do :; done
kill -STOP $(cat other)
echo done > ready
round=0
for name in own other; do
    while [ ! -e image.$name ]; do sleep 0.01; done
    for options in "" --new-pids; do
        for place in first last; do
            while [ ! -e go.$round ]; do sleep 0.01; done
            if [ $place = first ]; then
                "$HDCR" restore ./image.$name --detach --stdio null --pidfile pid.$round $options 2>> errors | cat
            else
                (echo $BASHPID > cat.$round; exec cat hold) | "$HDCR" restore ./image.$name --detach --stdio null --pidfile pid.$round $options 2>> errors &
                while [ ! -s pid.$round ]; do sleep 0.01; done
                echo > hold
                while [ -e /proc/$(cat cat.$round) ]; do sleep 0.01; done
            fi
            echo done > restored.$round
            round=$((round + 1))
        done
    done
done
while [ ! -e end ]; do sleep 0.01; done
""")
os.mkfifo("hold")
start("bash", "shell.sh")
ready()


def stopped(pid):
    """Whether it is stopped, or will never be again."""
    return until(f"process {pid} to stop", lambda: status(pid, "State").startswith(("T", "Z")) or None) and \
        status(pid, "State").startswith("T")


for name in ["own", "other"]:
    pid = int(read(name))
    must(stopped(pid), "the program is not stopped")
    hdcr("checkpoint", pid, "--output", f"image.{name}.new", "--kill")
    gone(pid)
    os.rename(f"image.{name}.new", f"image.{name}")
for number, (name, options, place) in enumerate(
    (name, options, place) for name in ["own", "other"] for options in ["", "--new-pids"] for place in ["first", "last"]
):
    write(f"go.{number}", "")
    until(f"the restore {number}", lambda: os.path.exists(f"restored.{number}"))
    pid = int(read(f"pid.{number}"))
    case = f"{name} {options} {place}"
    must(os.path.exists(f"/proc/{pid}") and status(pid, "State").startswith("T"), f"{case}: it was hung up")
    must(int(status(pid, "ShdPnd"), 16) & 1 == 0, f"{case}: SIGHUP waits for it")
    if number < 7:
        for process in [pid, *below(pid)]:
            try:
                kill(process)
            except ProcessLookupError:
                # It went with the first process of its namespace.
                pass
write("end", "")
os.kill(pid, signal.SIGCONT)
must(until("the result", lambda: read("result.other")) == "right\n", read("result.other"))
