"""Ends that lead out of the program: refused, closed after a restore, or connected again, as `--ends` says; `check` lists each."""
import json
import socket
from scenario import *

program = compile_c("program", r"""
#include <sys/socket.h>
#include <sys/un.h>
static int to(const char *path, int abstract) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path + abstract, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(fd > 2 && !connect(fd, (void *)&a, sizeof(sa_family_t) + strlen(path) + 1));
    MUST(write(fd, "before", 6) == 6);
    return fd;
}
/* What is at the other end: nobody, somebody, or bytes that somebody has sent. */
static const char *end(int fd, int is_socket) {
    static char text[16];
    if (is_socket && send(fd, "after", 5, MSG_NOSIGNAL) < 0) return errno == EPIPE ? "closed" : "?";
    ssize_t got = is_socket ? recv(fd, text, sizeof text - 1, 0) : read(fd, text, sizeof text - 1);
    if (got < 0) return "error";
    text[got] = 0;
    return got ? text : "end";
}
/* socket by path, abstract, inherited without a name (3), pipe (4) */
int main(int argc, char **argv) {
    int by_path = to("answers", 0), abstract = to(argv[1], 1), silent = to("is_silent", 0), pipes = argc > 2;
    signal(SIGPIPE, SIG_IGN);
    char numbers[64];
    snprintf(numbers, sizeof numbers, "%d %d %d", by_path, abstract, silent);
    say("ready", numbers);
    until("go");
    char text[256], of[5][16];
    strcpy(of[0], end(by_path, 1));
    strcpy(of[1], end(abstract, 1));
    strcpy(of[2], end(silent, 1));
    strcpy(of[3], end(3, 1));
    strcpy(of[4], pipes ? end(4, 0) : "none");
    snprintf(text, sizeof text, "%s %s %s %s %s", of[0], of[1], of[2], of[3], of[4]);
    say("result", text);
    return 0;
}
""")
ABSTRACT = f"hdcr-outside-{os.getpid()}"


def listener(name):
    """Somebody outside, who listens."""
    found = socket.socket(socket.AF_UNIX)
    found.bind(name)
    found.listen()
    found.settimeout(20)
    return found


def accepted(at, word):
    """The next connection, which begins with this word."""
    peer, _ = at.accept()
    peer.settimeout(20)
    must(peer.recv(100) == word, f"a connection does not begin with {word}")
    return peer


listeners = {name: listener(name) for name in ["answers", f"\0{ABSTRACT}", "is_silent"]}
ALL = list(listeners.values())


def begin(*words, pipe=True):
    """The program, with the ends that it has by its parent: a socket without a name at 3, a pipe at 4."""
    for name in ["ready", "go", "result", "image"]:
        if os.path.exists(name):
            os.remove(name)
    near, far = socket.socketpair()
    out, into = os.pipe()

    def place():
        os.dup2(near.fileno(), 13)
        os.dup2(out, 14)
        os.dup2(13, 3)
        os.dup2(14, 4) if pipe else os.close(4)
        os.closerange(5, 20)
    child = start(program, ABSTRACT, *words, close_fds=False, preexec_fn=place)
    near.close()
    os.close(out)
    ready()
    peers = [accepted(at, b"before") for at in ALL]
    return child, [*peers, far, os.fdopen(into, "wb", 0)], sorted([3, *[4] * pipe, *map(int, read("ready").split())])


def listed(child, rows, *options):
    """What check lists: the codes with the descriptors."""
    text = hdcr("check", child.pid, "--json", *options, ok=None)
    found = json.loads(text)
    return sorted((row["code"], row["fd"]) for row in found[rows] if row["code"].startswith("outside"))


def restored(child, *options):
    """Checkpointed, killed and restored."""
    hdcr("checkpoint", child.pid, "-o", "image", "--kill", *options)
    gone(child.pid)
    hdcr("check", "./image")
    return restore("./image")


# Refused: each is named, and the program goes on with all of them.
child, peers, numbers = begin("with a pipe")
must(listed(child, "refusals") == [("outside-end", number) for number in numbers], "not each end is listed")
text = hdcr("checkpoint", child.pid, "-o", "image", "--kill", ok=False)
must(text.count("[outside-end]") >= len(numbers), f"not each is named: {text}")
must(not os.path.exists("image") and child.poll() is None, "an image, or the program was killed")
for peer in peers[:-1]:
    peer.sendall(b"hello")
peers[-1].write(b"bytes")
must(result() == "hello hello hello hello bytes", f"the program was harmed: {read('result')}")
child.wait()

# Closed.
child, peers, numbers = begin("with a pipe")
must(listed(child, "notes", "--ends", "close") == [("outside-closed", number) for number in numbers], "not each is listed")
pid = restored(child, "--ends", "close")
must(result() == "closed closed closed closed end", f"not all are closed: {read('result')}")
gone(pid)

# Connected again, where somebody listens under the name.
child, peers, numbers = begin(pipe=False)
must(listed(child, "notes", "--ends", "reconnect") == [("outside-reconnected", number) for number in numbers], "not each is listed")
listeners["is_silent"].close()
os.remove("is_silent")
pid = restored(child, "--ends", "reconnect")
write("go", "")
for at in ALL[:2]:
    accepted(at, b"after").sendall(b"again")
must(until("the result", lambda: read("result")) == "again again closed closed none", f"not as it must be: {read('result')}")
gone(pid)
