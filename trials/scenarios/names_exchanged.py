"""A job exchanges files, directories, and one for the other, in one call each, and turns names round in a circle: a roll-back
puts all of them back, with what is in them."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files")
PROGRAM = """
import ctypes, os, time
def exchange(a, b):
    assert ctypes.CDLL(None).renameat2(-100, a, -100, b, 2) == 0
def put(path, text):
    with open(path, "w") as file: file.write(text)
for name in ["a", "b", "c", "f"]: put(name, name)
for name in ["d", "e", "g"]: os.mkdir(name); put(name + "/x", name)
put("../ready", "")
while not os.path.exists("../go"): time.sleep(0.01)
exchange(b"a", b"b"); put("a", "longer")
exchange(b"d", b"f"); put("f/new", "new")
exchange(b"f", b"e"); os.rename("f/x", "y")
os.rename("c", "t"); os.rename("a", "c"); os.rename("b", "a"); os.rename("t", "b")
os.rename("g", "h"); os.mkdir("g"); put("g/new", "new"); os.rename("h/x", "g/x")
put("../changed", "")
while not os.path.exists("../end"): time.sleep(0.01)
"""
WANTED = {"a": "a", "b": "b", "c": "c", "f": "f", "d/x": "d", "e/x": "e", "g/x": "g"}


def files():
    """All files with their contents."""
    paths = [os.path.join(at, name) for at, _, names in os.walk("work") for name in names]
    return {os.path.relpath(path, "work"): read(path) for path in paths}


os.mkdir("work")
write("program.py", PROGRAM)
job = Job(sys.executable, "-S", "../program.py", cwd="work")
ready()
job.checkpoint()
for _ in range(3):
    must(files() == WANTED, f"it is not as it was: {files()}\n{read('job.err')}")
    write("go", "")
    ready("changed")
    os.remove("go")
    must(files() != WANTED, "nothing has changed")
    job.crash()
    until("the roll-back", lambda: files() == WANTED or "rollback-l" in read("job.err"))
for code in ["rollback-lost", "rollback-written", "rollback-left", "rollback-doubtful"]:
    must(code not in read("job.err"), f"something is not rolled back: {read('job.err')}")
write("go", "")
write("end", "")
job.end()
