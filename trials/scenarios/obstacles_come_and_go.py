"""What stands in the way of a checkpoint comes and goes all the time: each one is refused, with the program running on, or restores rightly."""
import socket
import threading
from scenario import *

program = compile_c("program", r"""
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <sys/socket.h>
/* Holds something for a moment, uses it, and gives it up: 0 a connection to another program, 1 an io_uring, 2 a lease. */
static int hold(int what, int port) {
    int fd = -1;
    if (what == 0) {
        struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = { htonl(INADDR_LOOPBACK) } };
        struct linger reset = { 1, 0 };
        fd = socket(AF_INET, SOCK_STREAM, 0);
        MUST(fd > 0 && !setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) && !connect(fd, (void *)&a, sizeof a));
    } else if (what == 1) {
        struct io_uring_params p = { 0 };
        fd = syscall(SYS_io_uring_setup, 4, &p);
        if (fd < 0) exit(77);
    } else {
        fd = open("leased", O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fcntl(fd, F_SETLEASE, F_RDLCK)) exit(77);
    }
    return fd;
}
static void use(int what, int fd) {
    char c = 'x';
    if (what == 0) MUST(write(fd, &c, 1) == 1 && (c = 0, read(fd, &c, 1) == 1) && c == 'x');
    else if (what == 1) MUST(syscall(SYS_io_uring_enter, fd, 0, 0, 0, 0, 0) == 0);
    else MUST(fcntl(fd, F_GETLEASE) == F_RDLCK);
}
int main(int argc, char **argv) {
    int what = atoi(argv[1]), port = atoi(argv[2]), next = dup(0);
    unsigned random = 1;
    static unsigned long sum, turns;
    close(next);
    for (;;) {
        int fd = hold(what, port);
        MUST(fd == next);
        usleep((random = random * 1103515245 + 12345) >> 21);
        use(what, fd);
        MUST(!close(fd));
        sum += ++turns;
        MUST(sum == turns * (turns + 1) / 2);
        if (access("asked", F_OK) == 0 && !unlink("asked")) {
            char text[32];
            snprintf(text, sizeof text, "%lu", turns);
            say("turns", text);
        }
        usleep((random = random * 1103515245 + 12345) >> 21);
    }
}
""")
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(64)


def echo():
    """The other program: gives back what it gets."""
    while True:
        peer, _ = server.accept()
        try:
            while data := peer.recv(100):
                peer.sendall(data)
        except OSError:
            pass
        peer.close()


threading.Thread(target=echo, daemon=True).start()


def turns(pid):
    """How far the program is; it must be alive and right."""
    write("asked", "")

    def told():
        reap()
        must(os.path.exists(f"/proc/{pid}") and not os.path.exists("result"), f"the program has ended: {read('result')}")
        return read("turns")
    found = int(until("the program's word", told))
    os.remove("turns")
    return found


tried, lacking = 0, []
for what, code in enumerate(["tcp-established", "io-uring", "file-lease"]):
    child = start(program, str(what), str(server.getsockname()[1]))
    write("asked", "")
    until("the program", lambda: os.path.exists("turns") or child.poll() is not None)
    if child.poll() is not None:
        must(child.poll() == 77, f"{code}: ended with {child.poll()}: {read('result')}")
        lacking.append(code)
        continue
    os.remove("turns")
    images, refused, frozen, at = [], 0, 0, turns(child.pid)
    end = time.monotonic() + 8
    while (len(images) < 3 or frozen < 3 or refused - frozen < 2) and time.monotonic() < end:
        image = f"image.{what}.{len(images)}"
        text = hdcr("checkpoint", child.pid, "-o", image, "-vv", ok=None)
        if os.path.exists(image):
            images.append((image, at))
        else:
            must(f"[{code}]" in text or "[changed]" in text, f"{code}: refused otherwise: {text}")
            refused += 1
            # What the first look has not seen, as it was not there yet.
            frozen += "checkpoint: stopped" in text
        must(child.poll() is None and status(child.pid, "TracerPid") == "0", f"{code}: the program was touched: {read('result')}")
        now = turns(child.pid)
        must(now > at, f"{code}: it does not go on")
        at = now
    kill(child.pid)
    print(f"{code}: {len(images)} images, {refused} refusals, {frozen} of them under the freeze")
    must(images and frozen, f"{code}: {len(images)} images, {refused} refusals, {frozen} of them under the freeze")
    for image, least in images:
        pid = restore(f"./{image}")
        first, second = turns(pid), turns(pid)
        must(least < first < second, f"{code}: restored at {first}, made after {least}")
        kill(pid)
        os.remove(image)
    tried += 1
print("this machine does not have: " + (", ".join(lacking) or "nothing"))
must(tried > 0, "nothing could be tried")
