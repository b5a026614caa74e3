"""A tree that is left stopped by `checkpoint --stop` goes on, all of it, by the command that is told, and what had been stopped before stays so."""
from scenario import *

SCRIPT = """
sleep 1000 & kill -STOP $!; echo $! > stopped
setsid sh -c 'while :; do echo >> other; sleep 0.01; done' &
while :; do /bin/echo >> own; sleep 0.01; done
"""


def state(pid):
    """The state of a process, a letter."""
    return status(pid, "State")[:1]


def grows(name):
    """Waits until a file has become longer."""
    before = os.path.getsize(name)
    until(f"{name} to grow", lambda: os.path.getsize(name) > before)


program = start("bash", "-c", SCRIPT)
until("the program", lambda: read("stopped").strip() and read("own") and read("other"))
stopped = int(read("stopped"))
until("the stopped one", lambda: state(stopped) == "T")
said = hdcr("checkpoint", program.pid, "-o", "image", "--stop")
told = re.search(r"`kill -CONT ([0-9 ]+)`", said)
must(told, f"nothing tells how it goes on: {said}")
pids = list(map(int, told.group(1).split()))
must(program.pid in pids and len(pids) >= 3 and stopped not in pids, f"{pids}: {said}")
alive = [pid for pid in [program.pid, *below(program.pid)] if state(pid) not in ("Z", "")]
must(all(state(pid) == "T" for pid in alive), f"not all are stopped: {[(pid, state(pid)) for pid in alive]}")
for pid in pids:
    os.kill(pid, signal.SIGCONT)
grows("own")
grows("other")
must(state(stopped) == "T", "what was stopped before runs now")
end_all()
# The image was taken before the stop: it comes back running.
restore("image")
grows("own")
grows("other")
