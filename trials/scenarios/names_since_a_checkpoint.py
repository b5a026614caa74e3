"""Names that a program gives and takes after a checkpoint: a file that is written under a further name gets back what it held, a
lock that is made by link(2) can be had again, a directory that a rename has replaced is there again, and none that never
was."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files")
NAMES = "abcdefg"
PROGRAM = """
import ctypes, os, sys, time
def put(name, how, text):
    with open(name, how) as file: file.write(text)
for name in "abcdefg":
    put(name, "w", "first " * 1000)
    os.mkdir("D" + name)
    os.mkdir("E" + name)
put("own", "w", "own")
for name in ["spool", "full", "away"]: os.mkdir(name)
put("full/x", "w", "x")
put("away/y", "w", "y")
put("../there", "w", "")
while not os.path.exists("../go"): time.sleep(0.01)
put("../met", "w", repr(sorted(os.path.join(at, name) for at, below, files in os.walk(".") for name in below + files)))
if os.path.exists("../checked"): sys.exit(0)
os.link("own", "lock")
put("../lock", "a", "%d\\n" % os.stat("own").st_nlink)
def second(name):
    with open(name, "r+") as file:
        file.write("SECOND")
        file.truncate(2985)
os.link("a", "Da/x"); second("Da/x"); os.rename("Da", "Za")
os.link("b", "Db/x"); second("Db/x")
os.link("c", "Dc/x"); os.rename("Dc", "Zc"); second("Zc/x")
os.link("d", "Dd/x"); second("Dd/x"); os.rename("Dd/x", "Ed/x"); os.rename("Ed", "Zd")
os.link("e", "x"); second("x"); os.rename("x", "y")
os.link("f", "Df/x"); second("Df/x"); os.unlink("Df/x")
os.link("g", "Dg/x"); second("Dg/x"); os.unlink("Dg/x"); os.rename("Dg", "Zg")
os.link("../theirs", "Eg/x"); second("Eg/x")
os.rename("full", "spool")
os.rename("away", "back")
unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o644)
ctypes.CDLL(None).linkat(-100, b"/proc/self/fd/%d" % unnamed, -100, b"result", 0x400)
os.close(unnamed)
put("../done", "w", "")
while True: time.sleep(0.1)
"""

os.mkdir("work")
write("theirs", "first " * 1000)
job = Job("python3", "-c", PROGRAM, cwd="work")
ready("there")
job.checkpoint()
write("go", "")
for round in range(3):
    ready("done")
    must(read("lock") == "2\n", f"in round {round} the lock had {read('lock')!r} names")
    if round == 2:
        write("checked", "")
    job.crash()
job.end()
said = read("job.err")
for name in NAMES:
    must(read("work/" + name) == "first " * 1000, f"{name} holds {read('work/' + name)[:10]!r}...")
found = sorted(os.path.join(at, name) for at, below, files in os.walk("work") for name in below + files)
wanted = [name for letter in NAMES for name in (letter, "D" + letter, "E" + letter)]
wanted += ["own", "spool", "full", "full/x", "away", "away/y"]
must(found == sorted("work/" + name for name in wanted), f"there is {found}")
must(read("met") == repr(sorted("./" + name for name in wanted)), f"it met {read('met')}")
must(re.search(r"\[rollback-written\] file \(\S*/theirs\)", said), f"what is in theirs is not named: {said}")
must(re.search(r"\[rollback-aside\] file \(\S*/lock\).*the name was removed", said), f"the lock is not named: {said}")
must("/back" not in said, f"said of what was not there: {said}")
