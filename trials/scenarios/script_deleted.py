"""A job script that is removed while the shell still reads it; and one that is replaced."""
from scenario import *

SCRIPT = "touch ready\n" + "# padding\n" * 2000 + "while [ ! -e go ]; do sleep 0.01; done\n" + "# more\n" * 2000 \
    + "printf right > result\n"
for change in ["removed", "replaced"]:
    write("job.sh", SCRIPT, 0o755)
    child = start("bash", "job.sh")
    ready()
    if change == "removed":
        os.remove("job.sh")
    hdcr("checkpoint", child.pid, "-o", "image", "--kill")
    gone(child.pid)
    if change == "replaced":
        os.remove("job.sh")
        write("job.sh", "exit 9\n")
    restore("image")
    must(result() == "right", change)
    gone(child.pid)
    for name in ["ready", "go", "result", "image", "job.sh"]:
        if os.path.exists(name):
            os.remove(name)
