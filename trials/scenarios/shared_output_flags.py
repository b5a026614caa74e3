"""A restore takes nothing from the open file that the shell gave it: one that appends still appends."""
import fcntl
from scenario import *
PROGRAM = "import os, time\nprint('of the program', flush=True)\nopen('ready', 'w').close()\nwhile not os.path.exists('go'): time.sleep(.01)"
log = open("log", "wb", 0)
child = start("python3", "-c", PROGRAM, stdout=log)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
child.wait()
log.close()
log = open("log", "ab", 0)
before = fcntl.fcntl(log, fcntl.F_GETFL)
write("go", "")
text = hdcr("restore", "./image", stdout=log, stderr=subprocess.PIPE)
after = fcntl.fcntl(log, fcntl.F_GETFL)
must(after & os.O_APPEND, f"the flags of the shell were {before:o}, and are {after:o}")
