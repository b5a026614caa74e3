"""A user names the directory in which everything lies: the program's files, the store, images in files of their own, and scratch
files that nobody minds. The store and the images are no files of the program, and scratch files stay as they are."""
from scenario import *

PROGRAM = """
cd all
turn=0
while [ ! -e go ]; do
    turn=$((turn + 1)); echo $turn > state; > scratch/$turn; [ -e "scratch/$((turn - 3))" ] && rm scratch/$((turn - 3))
    [ -e ready ] || > ready
    sleep 0.01
done
echo $turn > result.part; cat state >> result.part; mv result.part result
"""


def turn():
    """The program's last turn; its file is empty for a moment in each."""
    return until("the program's turn", lambda: int(read("all/state") or 0))


def turned():
    """Waits until the program has gone on."""
    since = turn()
    until("the program's next turns", lambda: turn() > since + 5)


os.makedirs("all/scratch")
os.environ["HDCR_STORE"] = os.path.realpath("all/store")
options = ("--files", "all", "--file-policy", os.path.realpath("all/scratch") + "=ignore")
images = ["all/one.hdcr", "all/two.hdcr"]
job = Job("bash", "-c", PROGRAM, options=options)
ready("all/ready")
for number in range(1, 4):
    said = job.checkpoint()
    size = sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk("all/store") for name in names)
    must(size < 30 << 20, f"the store has {size} bytes after {number} checkpoints")
    turned()
# Twice: the second time beside the first image.
for image in images:
    job.checkpoint("-o", image)
    turned()
for life in range(2):
    scratch = set(os.listdir("all/scratch"))
    job.crash()
    until("the roll-back", lambda: read("job.err").count("rolled back to") == life + 1)
    turned()
    must(any(int(name) > max(map(int, scratch)) - 3 for name in os.listdir("all/scratch")), "scratch files are gone")
    for image in images:
        hdcr("verify", image)
    for number in range(1, 4):
        hdcr("verify", f"{job.name}@{number}")
    turned()
hdcr("stop", job.name)
until("the end of the job", lambda: job.keeper.poll() is not None)
for image in [*images, f"{job.name}@3", f"{job.name}@2"]:
    pid = restore(image)
    must(all(map(os.path.exists, images)), "an image is gone")
    turned()
    os.kill(pid, signal.SIGKILL)
    gone(pid)
pid = restore(images[1])
write("all/go", "")
lines = until("the result", lambda: read("all/result")).split()
must(len(lines) == 2 and lines[0] == lines[1], repr(lines))
gone(pid)
