"""A pipe that leads out has no name to be connected to again: what `check --ends reconnect` calls possible is not refused by `checkpoint`."""
from scenario import *

out, into = os.pipe()
child = start("sleep", "1000", pass_fds=[into])
os.close(into)
said = hdcr("check", child.pid, "--ends", "reconnect", ok=None)
text = hdcr("checkpoint", child.pid, "-o", "image", "--ends", "reconnect", ok=None)
must(("is possible" in said) == os.path.exists("image"), f"check says another thing than checkpoint: {said} {text}")
must("reconnect" not in text.partition("[outside-end]")[2], f"the remedy is what was tried: {text}")
