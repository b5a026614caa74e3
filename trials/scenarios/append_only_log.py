"""A log with the append-only attribute: a checkpoint says what a roll-back will meet, the roll-back is refused and not half done, and
the same command goes on when the attribute is gone."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root sets attributes of files")


def attribute(word):
    """Whether it could be set."""
    return subprocess.run(["chattr", word, "log"], check=False, capture_output=True).returncode == 0


PROGRAM = """
exec 3>> log; turn=0; > ready
while [ ! -e go ]; do turn=$((turn + 1)); echo $turn >&3; sleep 0.01; done
echo $turn > result.part; mv result.part result
"""

write("log", "")
if not attribute("+a"):
    lacks("this file system has no such attribute")
try:
    job = Job("bash", "-c", PROGRAM)
    ready()
    must("file-sealed" in hdcr("check", str(job.main()[0])), "nothing is said")
    job.checkpoint()
    turns = len(read("log").split())
    until("the next turns", lambda: len(read("log").split()) > turns + 5)
    os.kill(job.main()[0], signal.SIGKILL)
    until("the end of the keeper", lambda: job.keeper.poll() is not None)
    must("chattr" in read("job.err"), read("job.err"))
    must(attribute("-a"), "chattr")
    job = Job("bash", "-c", PROGRAM)
    until("the word that it goes on", lambda: "goes on from" in read("job.err"))
    turns = int(result())
    lines = list(map(int, read("log").split()))
    must(lines == list(range(1, turns + 1)), f"{turns} turns, and the log ends in {lines[-5:]}")
    job.end()
finally:
    attribute("-a")
