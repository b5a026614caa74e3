"""Programs and libraries where packages put them, and large ones anywhere: upgraded, removed, without the execute bit."""
import tempfile

from scenario import *

CLONE_NEWNS = 0x20000
LIB = 'int answer(int x) { return x + %d; }%s'
MAIN = r"""
int answer(int);
#ifdef BALLAST
__asm__(".section .rodata\nballast: .fill 41943040, 1, 7\n.text\n");
#endif
int main(int argc, char **argv) {
    say("ready", "");
    until("go");
    char text[64];
    snprintf(text, sizeof text, "%s %d", VERSION, answer(1));
    say("result", text);
    return 0;
}
"""

if os.geteuid() != 0 or LIBC.unshare(CLONE_NEWNS) != 0:
    lacks("the right to make a mount namespace")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
# Neither is below a directory that a reboot empties.
room = tempfile.mkdtemp(dir="/var/tmp")
atexit.register(lambda: subprocess.run(["rm", "-rf", room]))
os.chdir(room)
for name in ["opt", "work"]:
    os.mkdir(name)
subprocess.run(["mount", "--bind", f"{room}/opt", "/opt"], check=True)
atexit.register(lambda: subprocess.run(["umount", "-l", "/opt"]))
os.chdir("work")
os.environ["HDCR_STORE"] = f"{room}/store"


def compiled(place, text, *flags):
    """Builds beside the place and renames, as a package manager does."""
    write("source.c", f"{PRELUDE}\n{text}")
    done = subprocess.run(["gcc", "-O1", "-o", f"{place}.new", "source.c", *flags], capture_output=True, text=True)
    must(done.returncode == 0, f"gcc: {done.stderr[-500:]}")
    os.rename(f"{place}.new", place)


def build(where, version, number, *flags):
    """The program and its library; another version has another size."""
    more = "" if version == "old" else "int more(int x) { return x * 3; }"
    compiled(f"{where}/libanswer.so", LIB % (number, more), "-shared", "-fPIC")
    link = [f"-L{where}", "-lanswer", f"-Wl,-rpath,{where}"]
    compiled(f"{where}/program", MAIN, f'-DVERSION="{version}"', *link, *flags)
    return f"{where}/program"


def clear():
    for name in ["ready", "go", "result", "image"]:
        if os.path.exists(name):
            os.remove(name)


def by_hand(where, change, *options, image=("-o", "image")):
    """A checkpoint, a change, a restore: the result."""
    clear()
    child = start(build(where, "old", 41))
    ready()
    hdcr("checkpoint", child.pid, *image, "--kill", *options)
    gone(child.pid)
    change(where)
    name = "image" if image else f"program-{child.pid}"
    hdcr("check", name)
    restored = restore(name)
    found = result()
    gone(restored)
    must(found == "old 42", f"{where} {change.__name__} {options}: {found}")


def unchanged(where):
    pass


def no_longer_executable(where):
    os.chmod(f"{where}/program", 0o644)
    os.chmod(f"{where}/libanswer.so", 0o600)


def upgraded(where):
    build(where, "new", 100)


def in_place(where):
    for name in ["program", "libanswer.so"]:
        size = os.path.getsize(f"{where}/{name}")
        with open(f"{where}/{name}", "wb") as file:
            file.write(b"#" * size)


def removed(where):
    os.remove(f"{where}/program")
    os.remove(f"{where}/libanswer.so")


def program_lost_its_bit():
    for where in ["/opt", room]:
        by_hand(where, no_longer_executable)


def kept_on_request():
    for change in [unchanged, upgraded, in_place, removed]:
        by_hand("/opt", change, "--files", "/opt/program", "--files", "/opt/libanswer.so")
    by_hand("/opt", upgraded, "--file-policy", "/opt=content")
    by_hand(room, upgraded, "--files", f"{room}/program")


def never_text_of_another_file():
    """Policy ignore does not make a program run on another one's text: it is refused, and the remedy is named."""
    clear()
    child = start(build("/opt", "old", 41))
    ready()
    hdcr("checkpoint", child.pid, "-o", "image", "--kill", "--file-policy", "/opt=ignore")
    gone(child.pid)
    upgraded("/opt")
    told = hdcr("restore", "image", "--detach", ok=False)
    must("file-changed" in told and "--files" in told, f"not what was expected: {told}")


def checkpoints_in_a_store():
    for change in [no_longer_executable, upgraded, in_place, removed]:
        by_hand("/opt", change, image=())


def a_job(where, *flags):
    clear()
    job = Job(build(where, "old", 41, *flags))
    job.main()
    ready()
    job.checkpoint()
    upgraded(where)
    job.crash()
    # The program runs on without its files: that is how the next checkpoints meet it.
    job.checkpoint()
    job.checkpoint()
    job.crash()
    found = result()
    must(found == "old 42", f"job of {where}: {found}")
    must(job.keeper.wait(20) == 0, read("job.err"))
    must("programs" in hdcr("show", job.name), "the programs are not named")
    hdcr("verify", job.name)
    hdcr("rm", job.name)


def shelf():
    """How many programs the store keeps."""
    return len(os.listdir(f"{room}/store/.programs"))


def jobs():
    before = shelf() if os.path.isdir(f"{room}/store") else 0
    a_job("/opt")
    must(shelf() == before, "the store keeps programs that no checkpoint needs")


def large_programs():
    a_job(room, "-DBALLAST")


def an_ordinary_user():
    """Who may not open a removed file through the mapping."""
    clear()
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    os.chmod(room, 0o755)
    os.mkdir("mine")
    os.chown("mine", 65534, 65534)
    os.chdir("mine")
    os.environ.update(HOME=os.getcwd(), HDCR_STORE=f"{os.getcwd()}/store")
    child = start(build("/opt", "old", 41), **nobody)
    ready()
    upgraded("/opt")
    hdcr("check", child.pid, **nobody)
    hdcr("checkpoint", child.pid, "-o", "once", **nobody)
    hdcr("checkpoint", child.pid, "-o", "image", "--kill", **nobody)
    gone(child.pid)
    restored = restore("image", **nobody)
    found = result()
    gone(restored)
    must(found == "old 42", f"an ordinary user: {found}")
    os.chdir("..")


for part in sys.argv[1:] or ["program_lost_its_bit", "kept_on_request", "never_text_of_another_file",
                             "checkpoints_in_a_store", "jobs", "large_programs", "an_ordinary_user"]:
    globals()[part]()
