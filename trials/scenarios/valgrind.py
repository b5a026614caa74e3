"""A program under valgrind, which has no code of the kernel's own (vdso): checkpointed, killed and restored, twice."""
import shutil
from scenario import *

if not shutil.which("valgrind"):
    lacks("valgrind")
program = compile_c("counting", r"""
int main(void) {
    char *held = malloc(1 << 20);
    memset(held, 7, 1 << 20);
    say("ready", "");
    until("again");
    say("half", "");
    until("go");
    MUST(held[1000] == 7);
    free(held);
    say("result", "right");
    return 0;
}
""")
child = start("valgrind", "--quiet", "--error-exitcode=9", program)
ready()
must("[vdso]" not in read(f"/proc/{child.pid}/maps"), "valgrind has left it a vdso")
must("is possible" in hdcr("check", child.pid), "check")
hdcr("checkpoint", child.pid, "-o", "one")
hdcr("checkpoint", child.pid, "-o", "two", "--kill")
child.wait()
front = subprocess.Popen([HDCR, "restore", "two"], stdin=subprocess.DEVNULL)
write("again", "")
until("the second half", lambda: os.path.exists("half"))
hdcr("checkpoint", child.pid, "-o", "three", "--kill")
front.wait()
front = subprocess.Popen([HDCR, "restore", "three"], stdin=subprocess.DEVNULL)
must(result() == "right", read("result"))
until("the end of the restore", lambda: front.poll() is not None)
must(front.returncode == 0, f"valgrind ended with {front.returncode}")
