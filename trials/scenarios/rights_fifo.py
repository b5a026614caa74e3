"""A FIFO that root had opened for the program of another user is opened again when it is the very one; another FIFO of
root at its path is not, and is named."""
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can open something for another user")

program = compile_c("program", r"""
int main(void) {
    char byte = 0;
    MUST(read(0, &byte, 1) == 1 && byte == 'a');
    say("theirs/ready", "");
    until("theirs/go");
    MUST(read(0, &byte, 1) == 1 && byte == 'b');
    MUST(write(1, "c", 1) == 1);
    say("theirs/result", "right");
    return 0;
}
""")
os.chmod(".", 0o755)
os.mkdir("theirs")
os.chown("theirs", USER, USER)
os.mkdir("of_root", 0o700)
for name in ["of_root/in", "of_root/out"]:
    os.mkfifo(name, 0o600)
into, out = [os.open(name, os.O_RDWR) for name in ["of_root/in", "of_root/out"]]
os.write(into, b"ab")


def begin():
    """The program, whose ends root has opened."""
    ends = [os.open("of_root/in", os.O_RDONLY), os.open("of_root/out", os.O_WRONLY)]
    pid = start(program, stdin=ends[0], stdout=ends[1], user=USER, group=USER, extra_groups=[]).pid
    for end in ends:
        os.close(end)
    return pid


pid = begin()
ready("theirs/ready")
hdcr("checkpoint", pid, "--output", "image", "--kill")
gone(pid)
hdcr("check", "./image")
pid = restore("image")
write("theirs/go", "")
must(until("the result", lambda: read("theirs/result")) == "right", read("theirs/result"))
gone(pid)
must(os.read(out, 9) == b"c", "what it wrote did not come")

# Another FIFO of root lies there now.
os.remove("of_root/in")
os.mkfifo("of_root/in", 0o600)
text = hdcr("restore", "image", "--detach", ok=False)
must("file-not-permitted" in text and "of_root/in" in text, "the FIFO that stands in the way is not named: " + text)
# None at all, where the user may make none.
os.remove("of_root/in")
text = hdcr("restore", "image", "--detach", ok=False)
must("file-not-permitted" in text and "of_root/in" in text, "the FIFO that is missing is not named: " + text)
must(not os.path.exists("of_root/in"), "a FIFO was left behind")
