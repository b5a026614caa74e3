"""A checkpoint that is pinned stays, whatever a job gives up and whatever somebody asks for, until it is let go of."""
from scenario import *
import json

PROGRAM = """
turn = 0
open("ready", "w").close()
while True:
    turn += 1
    with open("turn", "w") as out:
        out.write(str(turn))
    if turn > 2000000000:
        break
"""


def listed():
    """The checkpoints of the job, with what they are pinned for."""
    found = json.loads(hdcr("list", job.name, "--json"))["checkpoints"]
    return {int(row["snapshot"].split("@")[1]): row.get("pinned") for row in found}


job = Job("python3", "-c", PROGRAM, options=["--keep", "2"])
ready()
job.checkpoint()
must("pinned" in hdcr("pin", f"{job.name}@1", "--note", "before the change"), "it is not said")
for _ in range(4):
    job.checkpoint()
must(listed() == {1: "before the change", 4: None, 5: None}, f"not what is to be kept: {listed()}")
text = hdcr("list", job.name)
must("PINNED" in text and "before the change" in text, text)

# Neither by name, nor by force, nor with all of its job, nor by limits.
for words in [("rm", f"{job.name}@1"), ("rm", "--force", f"{job.name}@1", f"{job.name}@4"), ("rm", f"{job.name}@4", f"{job.name}@1")]:
    refused = hdcr(*words, ok=False)
    must("[pinned]" in refused and "before the change" in refused and "hdcr unpin" in refused, refused)
must(f"{job.name}@1 stays: it is pinned" in hdcr("prune", job.name, "--keep", "1"), "it is not said why it stays")
must(sorted(listed()) == [1, 5], f"not what is to be kept: {listed()}")
must("[no-such-checkpoint]" in hdcr("pin", f"{job.name}@4", ok=False), "one that is gone was pinned")
must("[usage]" in hdcr("pin", job.name, "--note", "two\nlines", ok=False), "a note of two lines was taken")

# It is as good as any other; the newest one is pinned by the name of the job.
must(f"pinned {job.name}@5" in hdcr("pin", job.name), "the newest one was not pinned")
must(listed() == {1: "before the change", 5: ""}, f"not what is pinned: {listed()}")
hdcr("stop", job.name)
job.keeper.wait(20)
refused = hdcr("rm", job.name, ok=False)
must("[pinned]" in refused and sorted(listed()) == [1, 5], refused)
back = subprocess.Popen([HDCR, "restore", f"{job.name}@1"], stdin=subprocess.DEVNULL)
before = read("turn")
until("the program of the pinned checkpoint", lambda: read("turn") not in ("", before))
back.terminate()
back.wait(20)

must(f"unpinned {job.name}@1, {job.name}@5" in hdcr("unpin", job.name), "not all were let go of")
must("nothing was pinned" in hdcr("unpin", job.name), "a pin is left")
hdcr("rm", job.name)
must(not os.path.exists(os.path.join(os.environ["HDCR_STORE"], "jobs", job.name, "pin-1")), "a pin is left")
