"""An image of another user's program is refused to an ordinary user before anything is made, by `check` and by `restore` alike."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can be two users")
USER = 4321
as_user = {"user": USER, "group": USER, "extra_groups": []}
os.chmod(".", 0o755)
for owner, wanted in ((0, "user 0"), (1234, "user 1234"), (USER, None)):
    of_owner = {"user": owner, "group": owner, "extra_groups": []}
    program = start("sleep", "1000", **of_owner)
    until("the program", lambda: b"sleep" in open(f"/proc/{program.pid}/cmdline", "rb").read())
    image = f"image.{owner}"
    hdcr("checkpoint", program.pid, "-o", image, "--kill")
    os.chmod(image, 0o644)
    subprocess.run(["chown", "-R", str(USER), image], check=True)
    said = hdcr("check", image, ok=wanted is None, **as_user)
    if wanted is None:
        continue
    must("[credentials-beyond-own]" in said and wanted in said, f"check as another user: {said}")
    said = hdcr("restore", image, "--detach", ok=False, **as_user)
    must("[credentials-beyond-own]" in said and wanted in said, f"restore as another user: {said}")
