"""A program works in an overlay whose upper directory lies on a file system that is watched. A roll-back does nothing behind the
overlay's back: where the overlay can be watched (nfs_export) its files are rolled back by its own names, else they stay, and that
is said."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files and mount")
PROGRAM = """
import os, time
def put(name, how, text):
    with open(name, how) as file: file.write(text)
def step(number):
    put("log", "a", "%d\\n" % number)
    put(".t", "w", "%d\\n" % number); os.rename(".t", "state")
    put("n%d" % number, "w", "new")
    before = "n%d" % (number - 1)
    if os.path.exists(before): os.unlink(before)
for number in range(3): step(number)
put("../plain", "w", "one")
put("../there", "w", "")
while not os.path.exists("../go"): time.sleep(0.01)
put("../met", "w", repr(sorted(name for name in os.listdir(".") if "hdcr-aside" not in name)) + open("log").read())
for number in range(3, 6): step(number)
put("cfg", "a", "more\\n")
put("../plain", "w", "two")
put("../done", "w", "")
while not os.path.exists("../end"): time.sleep(0.01)
"""


def round(name, options):
    os.mkdir(name)
    for directory in "luwm":
        os.mkdir(f"{name}/{directory}")
    write(f"{name}/l/cfg", "base\n")
    mounted = subprocess.run(["mount", "-t", "overlay", "ov", "-o", f"lowerdir=l,upperdir=u,workdir=w{options}", "m"],
                             cwd=name, capture_output=True)
    if mounted.returncode != 0:
        lacks(f"no overlay can be mounted: {mounted.stderr}")
    try:
        job = Job("python3", "-c", PROGRAM, cwd=f"{name}/m")
        ready(f"{name}/there")
        job.checkpoint()
        write(f"{name}/go", "")
        ready(f"{name}/done")
        job.crash()
        ready(f"{name}/done")
        seen = sorted(os.listdir(f"{name}/m"))
        for entry in seen:
            os.stat(f"{name}/m/{entry}")
        write(f"{name}/end", "")
        job.end()
        aside = [entry for entry in os.listdir(f"{name}/u") if "hdcr" in entry and entry not in seen]
        must(not aside, f"something was done behind the overlay: {aside}")
        must(read(f"{name}/plain") == "two", f"plain holds {read(f'{name}/plain')}")
        return read("job.err"), read(f"{name}/met"), seen
    finally:
        subprocess.run(["umount", f"{name}/m"], check=False)


said, met, seen = round("unwatched", "")
must("[files-unwatched]" in said and "[rollback-incomplete]" in said, f"it is not said: {said}")
must("/u/" not in said, f"something was done behind the overlay: {said}")
said, met, seen = round("watched", ",index=on,nfs_export=on")
if "[files-unwatched]" in said:
    lacks("this kernel cannot watch an overlay")
must("/u/" not in said, f"something was done behind the overlay: {said}")
must(met == "['cfg', 'log', 'n2', 'state']0\n1\n2\n", f"after the roll-back it met {met}")
seen = [entry for entry in seen if "hdcr-aside" not in entry]
must(seen == ["cfg", "log", "n5", "state"], f"there is {seen}")
