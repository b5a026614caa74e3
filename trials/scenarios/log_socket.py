"""Output on a stream socket of a journal, and a datagram socket connected to a path like /dev/log: `check` names both."""
import json
import socket
import threading
from scenario import *

heard = {"journal": b"", "log": b""}
journal = socket.socket(socket.AF_UNIX)
journal.bind("journal")
journal.listen()
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("log")


def listen():
    while True:
        peer, _ = journal.accept()
        threading.Thread(target=hear, args=("journal", peer.recv), daemon=True).start()


def hear(name, receive):
    while data := receive(65536):
        heard[name] += data


threading.Thread(target=listen, daemon=True).start()
threading.Thread(target=hear, args=("log", log.recv), daemon=True).start()
program = compile_c("daemon", r"""
#include <sys/socket.h>
#include <sys/un.h>
int main(void) {
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "log"};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    MUST(!connect(fd, (void *)&a, sizeof a));
    dprintf(1, "out before\n");
    dprintf(fd, "log before\n");
    say("ready", "");
    until("go");
    dprintf(1, "out after\n");
    dprintf(2, "err after\n");
    MUST(send(fd, "log after\n", 10, 0) == 10);
    say("result", "right");
    return 0;
}
""")


def connected():
    stream = socket.socket(socket.AF_UNIX)
    stream.connect("journal")
    return stream


stream = connected()
child = start(program, stdout=stream.fileno(), stderr=stream.fileno())
stream.close()
ready()
notes = json.loads(hdcr("check", child.pid, "--json"))["notes"]
told = sorted((note["code"], note["fd"]) for note in notes if note["code"].startswith("outside"))
must(told == [("outside-datagram", 3), ("outside-stream", 1), ("outside-stream", 2)], f"check names other ends: {told}")
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
stream = connected()
front = subprocess.Popen([HDCR, "restore", "image"], stdin=subprocess.DEVNULL, stdout=stream.fileno(),
                         stderr=stream.fileno())
stream.close()
must(result() == "right", read("result"))
until("the end of the restore", lambda: front.poll() is not None)
must(front.returncode == 0, f"restore ended with {front.returncode}")
for word in [b"out before", b"out after", b"err after"]:
    until(f"{word} in the journal", lambda: heard["journal"].count(word) == 1)
for word in [b"log before", b"log after"]:
    until(f"{word} in the log", lambda: heard["log"].count(word) == 1)
