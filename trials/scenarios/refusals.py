"""What cannot be kept is refused by name before anything is touched, and the program goes on: a list of such things."""
import shutil
from scenario import *

# What a program has, the word that the refusal must say, and how it gets it (77: this machine does not have it).
HAVING = [
    ("packet socket", "socket", "int s = socket(AF_PACKET, SOCK_RAW, 0); if (s < 0) _exit(77);"),
    ("algorithm socket", "socket", "int s = socket(AF_ALG, SOCK_SEQPACKET, 0); if (s < 0) _exit(77);"),
    ("virtual machine socket", "socket", "int s = socket(AF_VSOCK, SOCK_STREAM, 0); if (s < 0) _exit(77);"),
    ("filter of a socket", "socket-filter", r"""
        struct sock_filter all = { 6 /* BPF_RET */, 0, 0, 0xffff };
        struct sock_fprog filter = { 1, &all };
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        if (s < 0 || setsockopt(s, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter)) _exit(77);
    """),
    ("filter of a UNIX socket", "socket-filter", r"""
        struct sock_filter all = { 6 /* BPF_RET */, 0, 0, 0xffff };
        struct sock_fprog filter = { 1, &all };
        int s[2];
        MUST(!socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
        if (setsockopt(s[1], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter)) _exit(77);
    """),
    ("filter of eBPF", "socket-filter", r"""
        struct { unsigned char code, registers; short offset; int value; } words[] = { { 0xb7, 0, 0, 0xffff }, { 0x95, 0, 0, 0 } };
        struct { unsigned type, count; unsigned long words, license; unsigned rest[28]; } attr = { 1, 2, (long)words, (long)"GPL", { 0 } };
        int program = syscall(SYS_bpf, 5 /* BPF_PROG_LOAD */, &attr, sizeof attr), s = socket(AF_INET, SOCK_DGRAM, 0);
        if (program < 0 || setsockopt(s, SOL_SOCKET, 50 /* SO_ATTACH_BPF */, &program, sizeof program) || close(program)) _exit(77);
    """),
    ("group of multicast", "multicast-membership", r"""
        struct ip_mreqn group = { { htonl(0xe00000fb) }, { htonl(INADDR_LOOPBACK) }, 0 };
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        if (s < 0 || setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group)) _exit(77);
    """),
    ("group of multicast by its source", "multicast-membership", r"""
        struct ip_mreq_source group = { { htonl(0xe80000fb) }, { htonl(INADDR_LOOPBACK) }, { htonl(0x7f000002) } };
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        if (s < 0 || setsockopt(s, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &group, sizeof group)) _exit(77);
    """),
    ("group of multicast of IPv6", "multicast-membership", r"""
        struct ipv6_mreq group = { { { { 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb } } }, 1 };
        int s = socket(AF_INET6, SOCK_DGRAM, 0);
        if (s < 0 || setsockopt(s, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group, sizeof group)) _exit(77);
    """),
    ("userfaultfd", "userfault", "if (syscall(SYS_userfaultfd, 1) < 0) _exit(77);"),
    ("fanotify", "fanotify", "if (syscall(SYS_fanotify_init, 0, 0) < 0) _exit(77);"),
    ("secret memory", "secret", "if (syscall(447, 0) < 0) _exit(77);"),
    ("huge pages", "huge", r"""
        void *at = mmap(0, 2 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        if (at == MAP_FAILED) _exit(77);
        *(char *)at = 1;
    """),
    ("huge memfd", "huge", "if (syscall(SYS_memfd_create, \"x\", 4) < 0) _exit(77);"),
    ("lease", "lease", r"""
        int f = open("leased", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fcntl(f, 1024, F_WRLCK)) _exit(77);
    """),
    ("message queue", "queue", r"""
        int q = syscall(SYS_mq_open, "hdcr-refusals", O_RDWR | O_CREAT, 0600, 0);
        if (q < 0) _exit(77);
        syscall(SYS_mq_unlink, "hdcr-refusals");
    """),
    ("protection key", "protection key", r"""
        int key = syscall(SYS_pkey_alloc, 0, 0);
        if (key < 0) _exit(77);
        void *at = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (syscall(SYS_pkey_mprotect, at, 4096L, 3L, (long)key)) _exit(77);
    """),
    ("timer of another process", "posix-timer", r"""
        clockid_t clock;
        timer_t timer;
        struct sigevent event = { .sigev_notify = SIGEV_NONE };
        MUST(!clock_getcpuclockid(getppid(), &clock));
        if (timer_create(clock, &event, &timer)) _exit(77);
    """),
    ("timer of a thread that has ended", "posix-timer", r"""
        pthread_t thread;
        MUST(!pthread_create(&thread, 0, with_a_timer, 0) && !pthread_join(thread, 0));
    """),
    ("core scheduling", "core-scheduling", "if (prctl(62 /* PR_SCHED_CORE */, 1, 0, 0, 0)) _exit(77);"),
    ("bpf map", "bpf", r"""
        struct { unsigned type, key, value, entries, rest[28]; } attr = { 2, 4, 4, 1, { 0 } };
        if (syscall(SYS_bpf, 0, &attr, sizeof attr) < 0) _exit(77);
    """),
    ("all mappings that it may have", "no-room", r"""
        long page = 4096, most = 2L << 20;
        char *at = mmap(0, most * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        MUST(at != MAP_FAILED);
        for (long i = 1; i < most && !mprotect(at + i * page, page, PROT_READ); i += 2) {}
        if (!mprotect(at + (most - 1) * page, page, PROT_READ)) _exit(77);
    """),
    ("file system of its own", "namespace", "if (unshare(CLONE_NEWNS)) _exit(77);"),
    ("name of the host", "namespace", "if (unshare(CLONE_NEWUTS)) _exit(77);"),
    ("network", "namespace", "if (unshare(CLONE_NEWNET)) _exit(77);"),
    ("pid namespace for children", "namespace", "if (unshare(CLONE_NEWPID)) _exit(77);"),
]
HEADERS = r"""
#include <linux/filter.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <time.h>

static void *with_a_timer(void *unused)
{
    clockid_t clock;
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_NONE };

    MUST(!pthread_getcpuclockid(pthread_self(), &clock) && !timer_create(clock, &event, &timer));
    return unused;
}
"""


def refused(child, word, what):
    """Both commands refuse, say why, and leave no image; the program is what it was."""
    for command in [["check", child.pid], ["checkpoint", child.pid, "-o", "image", "--kill"]]:
        text = hdcr(*command, ok=None)
        must("[" in text and word in text.lower(), f"{what}: {command[0]} does not name {word}: {text.strip()[-400:]}")
    must(not os.path.exists("image"), f"{what}: an image")
    must(child.poll() is None and status(child.pid, "TracerPid") == "0", f"{what}: the program was touched")


def kept_from_others(words):
    """A program of C that has something."""
    compile_c("having", f"{HEADERS}int main(void) {{ {words} say(\"ready\", \"\"); until(\"go\"); say(\"result\", \"right\"); }}")
    return start(os.path.abspath("having"))


lacking = []
for what, word, words in HAVING:
    child = kept_from_others(words)
    until(f"{what}", lambda: os.path.exists("ready") or child.poll() is not None)
    if child.poll() == 77:
        lacking.append(what)
        continue
    must(child.poll() is None, f"{what}: ended: {read('result')}")
    refused(child, word, what)
    must(result() == "right", f"{what}: {read('result')}")
    child.wait()
    for name in ["ready", "go", "result"]:
        os.remove(name)

# What cannot be seen, but only supposed, is told.
child = kept_from_others(r"""
    unsigned long long handled[2] = { 1, 0 };
    int rules = syscall(444, handled, 8L, 0L);
    MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (rules < 0 || syscall(446, rules, 0L)) _exit(77);
    close(rules);
""")
until("a sandbox", lambda: os.path.exists("ready") or child.poll() is not None)
if child.poll() is None:
    must("landlock-unknown" in hdcr("check", child.pid), "a sandbox is not told of")
    kill(child.pid)
    os.remove("ready")
else:
    lacking.append("landlock")

# A 32-bit program, without any library.
write("small.c", "void _start(void) { for (;;) __asm__ volatile (\"int $0x80\" : : \"a\" (29)); }")
words = ["gcc", "-m32", "-O1", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-o", "small", "small.c"]
if subprocess.run(words, capture_output=True).returncode == 0:
    child = start(os.path.abspath("small"))
    until("the small program", lambda: os.path.basename(os.path.realpath(f"/proc/{child.pid}/exe")) == "small")
    until("its pause", lambda: read(f"/proc/{child.pid}/stat").rpartition(")")[2].split()[:1] == ["S"])
    refused(child, "32-bit", "a 32-bit program")
    kill(child.pid)
else:
    lacking.append("a 32-bit program")

# A program that has no vdso, and no room at the end of its text.
write("bare.c", r"""
static long call(long number, long a, long b)
{
    long result;
    __asm__ volatile ("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b) : "rcx", "r11", "memory");
    return result;
}
__attribute__((used)) static void begin(long *stack)
{
    long *at = stack + 1 + *stack + 1;
    while (*at++) {}
    for (; *at; at += 2)
        if (*at == 33 /* AT_SYSINFO_EHDR */) call(11 /* munmap */, at[1], 4 * 4096);
    for (;;) call(34 /* pause */, 0, 0);
}
__asm__ (".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");
__asm__ (".section .text.last,\"ax\"\n.balign 4096\n.fill 4000, 1, 0x90\n.text\n");
""")
words = ["gcc", "-O1", "-nostdlib", "-static", "-no-pie", "-Wl,-z,separate-code", "-o", "bare", "bare.c"]
must(subprocess.run(words, capture_output=True).returncode == 0, "gcc")
child = start(os.path.abspath("bare"))
until("the bare program", lambda: "/bare" in read(f"/proc/{child.pid}/maps") and "[vdso]" not in read(f"/proc/{child.pid}/maps"))
refused(child, "no-code-room", "no vdso and no room")
kill(child.pid)

# The tree that holds the command itself.
write("own.sh", f"{HDCR} checkpoint $$ -o image; echo $? > status; : \n")
child = start("sh", "own.sh", stdout=open("own.out", "w"), stderr=subprocess.STDOUT)
child.wait()
must(read("status").strip() not in ["", "0"] and not os.path.exists("image"), f"the caller's own tree: {read('own.out')}")
must("calling process" in read("own.out") or "hdcr itself" in read("own.out"), f"the caller's own tree: {read('own.out')}")
print("this machine does not have: " + (", ".join(lacking) or "nothing"))
must(len(lacking) < len(HAVING), "nothing could be tried")
