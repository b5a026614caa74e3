"""In a chroot whose root is no mount point (debootstrap): a watched job rolls back, and --new-pids has a /proc of its own."""
import shutil
from scenario import *

TOLD = ["bash_append", "number_in_use"]
if os.geteuid() != 0:
    lacks("the right to change the root directory")

# The user's programs from outside, all that is written on the chroot's own file system.
SCRIPT = r"""
set -e
mount --make-rprivate /
for name in usr bin sbin lib lib64 etc; do
    [ -L /$name ] && cp -P /$name "$1/$name" && continue
    [ -d /$name ] || continue
    mkdir "$1/$name"
    mount --rbind /$name "$1/$name"
done
mkdir "$1/proc" "$1/dev"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" sh -c 'cd "$1" && exec python3 "$2"' sh "$2" "$3"
"""

for name in TOLD:
    root = f"{os.getcwd()}/{name}"
    for folder in ["", "tmp", "run", "place", "scenarios"]:
        os.mkdir(f"{root}/{folder}")
    shutil.copy(HDCR, f"{root}/hdcr")
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    for script in [name, "scenario"]:
        shutil.copy(f"{here}/{script}.py", f"{root}/scenarios/")
    words = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", root, "/place", f"/scenarios/{name}.py"]
    surroundings = {**os.environ, "HDCR": "/hdcr", "HDCR_STORE": "/store"}
    done = subprocess.run(words, env=surroundings, stdin=subprocess.DEVNULL, timeout=100, check=False)
    must(done.returncode in [0, 77], f"{name} in a chroot ended with {done.returncode}")
