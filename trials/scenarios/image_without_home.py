"""An image that is a file is shown, checked, verified and restored by a user who has no home and no store."""
from scenario import *

USER = 54321
if os.geteuid() != 0:
    lacks("only root can become another user")
os.chmod(".", 0o755)
os.chown(".", USER, USER)
if subprocess.run([HDCR, "--version"], user=USER, group=USER, extra_groups=[], capture_output=True, check=False).returncode:
    lacks("another user cannot run the program here")
os.mkdir("of_root", 0o700)
del os.environ["HDCR_STORE"]
for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
    os.environ.pop(name, None)
as_user = {"user": USER, "group": USER, "extra_groups": []}

for number, home in enumerate((os.path.abspath("of_root"), None)):
    os.environ.pop("HOME", None)
    if home:
        os.environ["HOME"] = home
    image = f"./image{number}"
    write("out", "")
    os.chown("out", USER, USER)
    program = start("sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; echo end", stdout=open("out", "a"), **as_user)
    hdcr("checkpoint", program.pid, "-o", image, "--kill", **as_user)
    program.wait()
    for command in ("show", "verify", "check"):
        hdcr(command, image, **as_user)
    write("go", "")
    hdcr("restore", image, **as_user)
    must(read("out") == "end\n", f"the program has written {read('out')}")
    os.remove("go")
must(not os.listdir("of_root"), "something is in the home of another")
