"""Root restores the program of another user: what that user puts in the way does not lead to files of root; what root had
opened for the program is rolled back all the same."""
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can restore the program of another user")

program = compile_c("program", r"""
int main(void) {
    int data = open("theirs/data", O_RDWR);
    MUST(data >= 0 && pwrite(data, "old", 3, 0) == 3);
    MUST(write(1, "one\n", 4) == 4);
    say("theirs/ready", "");
    until("theirs/more");
    MUST(pwrite(data, "NEW AND LONGER", 14, 0) == 14 && write(1, "two\n", 4) == 4);
    say("theirs/written", "");
    until("theirs/go");
    MUST(write(1, "end\n", 4) == 4);
    say("theirs/result", "right");
    return 0;
}
""")


def begin():
    """The program of the user, with an output that root has opened."""
    os.mkdir("theirs")
    write("theirs/data", "")
    for path in ["theirs", "theirs/data"]:
        os.chown(path, USER, USER)
    with open("of_root.log", "a") as log:
        os.chmod("of_root.log", 0o644)
        return start(program, stdout=log, user=USER, group=USER, extra_groups=[]).pid


def written(pid):
    """Lets it write what a roll-back takes away, and kills it."""
    write("theirs/more", "")
    ready("theirs/written")
    kill(pid)
    os.remove("theirs/more")


os.chmod(".", 0o755)
pid = begin()
ready("theirs/ready")
hdcr("checkpoint", pid, "--output", "image")
written(pid)

# What root had opened is what it was: it is cut back, and the program writes on.
hdcr("check", "image")
pid = restore("image")
must(read("theirs/data") == "old" and read("of_root.log") == "one\n", "the files were not rolled back")
must(os.stat("theirs/data").st_uid == USER, "the file has changed hands")
write("theirs/more", "")
write("theirs/go", "")
must(until("the result", lambda: read("theirs/result")) == "right", read("theirs/result"))
gone(pid)
must(read("of_root.log") == "one\ntwo\nend\n", "the output of root: " + repr(read("of_root.log")))

# Another file of root lies there now: not the one that was open.
os.remove("of_root.log")
write("of_root.log", "one\nsomething else of root\n")
text = hdcr("check", "image", ok=False)
must("file-not-permitted" in text and "--map-path" in text, "a check does not say what a restore will: " + text)
text = hdcr("restore", "image", "--detach", ok=False)
must("file-not-permitted" in text or "of_root.log" in text, "the file that stands in the way is not named")
must(read("of_root.log") == "one\nsomething else of root\n", "another file of root was changed")
os.remove("of_root.log")

# A link in the place of a directory, as the user may make one.
os.mkdir("of_root")
write("of_root/data", "a secret of root", mode=0o600)
os.rename("theirs", "moved")
os.symlink("of_root", "theirs")
text = hdcr("restore", "image", "--detach", ok=False)
must(read("of_root/data") == "a secret of root", "a file of root was overwritten")
must(sorted(os.listdir("of_root")) == ["data"], "files were made among those of root")
