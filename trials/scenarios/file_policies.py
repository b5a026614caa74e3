"""What `--file-policy` and the configuration say of a file: contents at any size, cut back, unchanged or refused, as it is."""
import tomllib
from scenario import *

program = compile_c("program", r"""
/* Writes into the head and the middle of each file, and at its end. */
static int fd[8], files;
static void put(const char *word, const char *tail) {
    for (int i = 0; i < files; i++) {
        off_t end = lseek(fd[i], 0, SEEK_END);
        for (int at = 4096; at < 200000; at += 159744) MUST(pwrite(fd[i], word, 3, at) == 3);
        MUST(pwrite(fd[i], tail, strlen(tail), end) == (ssize_t)strlen(tail));
    }
}
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) MUST((fd[files++] = open(argv[i], O_RDWR)) > 0);
    put("OLD", "tail of old");
    say("ready", "");
    until("more");
    put("NEW", "tail of new and more");
    say("written", "");
    until("go");
    say("result", "right");
    return 0;
}
""")
SIZE = 3 << 20
BEGUN = b"x" * 4096 + b"OLD" + b"x" * 159741 + b"OLD" + b"x" * (SIZE - 163843) + b"tail of old"
# What of a large file lies between its ends stays as it was written last, when it is only cut back.
CUT = b"NEW".join(BEGUN.rsplit(b"OLD", 1))
LATER = BEGUN.replace(b"OLD", b"NEW") + b"tail of new and more"
KINDS = ["content", "truncate", "verify", "ignore"]


def holds(name):
    with open(name, "rb") as file:
        return file.read()


def put(name, data):
    with open(name, "wb") as file:
        file.write(data)


def begin(names, *options, **more):
    """The program with these files, checkpointed."""
    for name in ["ready", "more", "written", "go", "result", "image"]:
        if os.path.exists(name):
            os.remove(name)
    for name in names:
        put(name, b"x" * SIZE)
    child = start(program, *names)
    ready()
    text = hdcr("checkpoint", child.pid, "-o", "image", "--file-limit", "1M", *options, **more)
    return child, text


def on(child):
    """Lets it write once more, and kills it."""
    write("more", "")
    ready("written")
    kill(child.pid)
    os.remove("more")


def back():
    """Restored, as check says."""
    hdcr("check", "./image")
    return restore("./image")


def ended(pid):
    """It runs to its end."""
    write("more", "")
    must(result() == "right", read("result"))
    gone(pid)


os.makedirs("in/deep")
FILES = {kind: f"in/{kind}" for kind in KINDS}
# Without a word such a file is above the limit: it stands in the way.
child, text = begin([FILES["content"]], ok=False)
must("[file-beyond-limit]" in text and "in/content" in text, f"the limit is none: {text}")
kill(child.pid)

# Each as it is said; the longest path wins, by flags as by the configuration.
write("config.toml", f"""
[files]
limit = "1M"
policy = {{ {", ".join(f'"{os.path.abspath(path)}" = "{kind}"' for kind, path in FILES.items())}, "{os.path.abspath("in")}" = "ignore" }}
""")
must(len(tomllib.loads(read("config.toml"))["files"]["policy"]) == 5, "the configuration is not what was meant")
flags = [word for kind, path in [*FILES.items(), ("ignore", "in")] for word in ("--file-policy", f"{path}={kind}")]
for words in (flags, ["--config", "config.toml"]):
    child, _ = begin([*FILES.values(), "in/deep/other"], *words)
    dated = os.stat(FILES["verify"])
    on(child)
    must(all(holds(path) == LATER for path in FILES.values()), "the program does not write")
    text = hdcr("restore", "./image", "--detach", ok=False)
    must(text.count("[file-") == 1 and "[file-changed]" in text and FILES["verify"] in text, f"not rightly refused: {text}")
    must(all(holds(path) == LATER for path in FILES.values()), "a refused restore has changed a file")
    # One of that size is known by its time, as what lies between its ends is not looked at.
    put(FILES["verify"], BEGUN)
    os.utime(FILES["verify"], ns=(dated.st_atime_ns, dated.st_mtime_ns))
    pid = back()
    must(holds(FILES["content"]) == BEGUN, "content: not what it was")
    must(holds(FILES["truncate"]) == CUT, "truncate: not cut back, or more than that")
    must(holds(FILES["verify"]) == BEGUN, "verify: it was changed")
    must(holds(FILES["ignore"]) == holds("in/deep/other") == LATER, "ignore: it was changed")
    ended(pid)

# What is shorter than it was cannot be cut back; a file that is gone comes back with its contents only.
child, _ = begin([FILES["truncate"]], "--file-policy", "in=truncate")
on(child)
put(FILES["truncate"], BEGUN[:SIZE])
text = hdcr("restore", "./image", "--detach", ok=False)
must("[file-shorter]" in text and holds(FILES["truncate"]) == BEGUN[:SIZE], f"not refused: {text}")
put(FILES["truncate"], BEGUN)
ended(back())
child, _ = begin([FILES["content"]], "--file-policy", "in=content")
on(child)
os.remove(FILES["content"])
pid = back()
must(holds(FILES["content"]) == BEGUN, "content: a removed file is not what it was")
ended(pid)
child, _ = begin([FILES["verify"]], "--file-policy", "in=verify")
kill(child.pid)
os.remove(FILES["verify"])
must("[file-missing]" in hdcr("restore", "./image", "--detach", ok=False), "a file that is gone is not missed")

for wrong in ["in=nonsense", "in", "=verify"]:
    must("[usage]" in hdcr("checkpoint", os.getpid(), "-o", "image2", "--file-policy", wrong, ok=False), f"{wrong} is taken")
