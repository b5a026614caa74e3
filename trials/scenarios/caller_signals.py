"""Callers that ignore SIGCHLD, as daemons do, or block all signals: `run` and `restore` end with the program all the same,
and the program begins with what its caller has ignored."""
from scenario import *


def ignored():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


for number, strange in enumerate([ignored, blocked]):
    text = hdcr("run", "--name", f"strange-{number}", "--every", "1s", "--", "grep", "SigIgn", "/proc/self/status",
                preexec_fn=strange, limit=20)
    found = re.search(r"SigIgn:\s*([0-9a-f]+)", text)
    must(found, "the program has said nothing: " + text)
    child = int(found.group(1), 16) >> (signal.SIGCHLD - 1) & 1
    must(child == (strange is ignored), f"SIGCHLD of the program: {child}")
    program = start("bash", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 3")
    hdcr("checkpoint", program.pid, "-o", "image", "--kill")
    until("the end of all", lambda: (reap(), not below(os.getpid()))[1])
    write("go", "")
    hdcr("restore", "./image", ok=None, preexec_fn=strange, limit=20)
    os.remove("go")
    os.remove("image")
