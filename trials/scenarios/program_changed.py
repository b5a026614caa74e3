"""The program file without its execute bit, upgraded in place or by rename, removed; a library likewise."""
from scenario import *

LIB = 'int answer(int x) { return x + %d; }'
MAIN = r"""
int answer(int);
int main(void) {
    say("ready", "");
    until("go");
    char text[64];
    snprintf(text, sizeof text, "%s %d", VERSION, answer(1));
    say("result", text);
    return 0;
}
"""


def build(version, number):
    compile_c("libanswer.so", LIB % number, "-shared", "-fPIC")
    here = os.getcwd()
    return compile_c("program", MAIN, f'-DVERSION="{version}"', f"-L{here}", "-lanswer", f"-Wl,-rpath,{here}")


def chmod():
    os.chmod("program", 0o644)
    os.chmod("libanswer.so", 0o600)


def upgrade():
    build("new", 100)


def overwrite():
    for name in ["program", "libanswer.so"]:
        size = os.path.getsize(name)
        with open(name, "wb") as file:
            file.write(b"#" * size)


def remove():
    os.remove("program")
    os.remove("libanswer.so")


def truncate():
    os.truncate("program", 0)
    os.truncate("libanswer.so", 100)


for change in [chmod, upgrade, overwrite, remove, truncate]:
    for name in ["ready", "go", "result", "program", "libanswer.so", "image"]:
        if os.path.exists(name):
            os.remove(name)
    child = start(build("old", 41))
    ready()
    hdcr("checkpoint", child.pid, "-o", "image", "--kill")
    gone(child.pid)
    change()
    before = [os.stat(n).st_size if os.path.exists(n) else None for n in ["program", "libanswer.so"]]
    restore("image")
    must(result() == "old 42", f"{change.__name__}: {read('result')}")
    gone(child.pid)
    after = [os.stat(n).st_size if os.path.exists(n) else None for n in ["program", "libanswer.so"]]
    # What is missing below /tmp is made again, as a reboot removes it.
    must(before == after or change is remove, f"{change.__name__}: the new files were touched")
