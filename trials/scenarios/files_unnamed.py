"""A program that writes in many files which checkpoints did not know of, as a database does: that is said once, and not when
the user has named their directory."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root may watch what programs do to files")
PROGRAM = r"""
stay() { while [ ! -e "$1" ]; do sleep 0.002; done; }
echo > started; stay first
for i in 0 1 2 3 4 5 6 7 8 9; do echo more >> data/$((i % 2))/$i; done
echo > wrote; stay second
"""
CODE = "[files-unnamed]"


def rounds(said, **options):
    """Two checkpoints, and files that are written first in between."""
    for number in range(10):
        os.makedirs(f"data/{number % 2}", exist_ok=True)
        write(f"data/{number % 2}/{number}", "was there before\n")
    job = Job("bash", "-c", PROGRAM, **options)
    ready("started")
    hdcr("checkpoint", job.name)
    write("first", "")
    ready("wrote")
    hdcr("checkpoint", job.name)
    hdcr("checkpoint", job.name)
    write("second", "")
    job.end()
    told = read("job.err")
    must(told.count(CODE) == said, f"said {told.count(CODE)} times: {told}")
    must(not said or f"{os.getcwd()}/data" in told, f"the directory is not named: {told}")
    hdcr("rm", job.name)
    for name in ("started", "wrote", "first", "second"):
        os.remove(name)


rounds(1)
rounds(0, options=["--files", os.path.abspath("data")])
