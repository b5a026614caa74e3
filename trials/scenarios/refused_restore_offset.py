"""A restore that is refused leaves the output that it shares with others where it was: what is written then overwrites nothing."""
import fcntl
from scenario import *

write("lock", "")
PROGRAM = "import fcntl, time\nf = open('lock', 'r+')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint('of the program', flush=True)\nopen('ready', 'w').close()\ntime.sleep(1000)"
log = open("log", "wb", 0)
child = start("python3", "-c", PROGRAM, stdout=log)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
child.wait()
log.write(b"of the shell, which goes on in the same file\n")
other = open("lock", "r+")
fcntl.flock(other, fcntl.LOCK_EX)
at = log.tell()
text = hdcr("restore", "./image", ok=False, stdout=log, stderr=subprocess.PIPE)
after = os.lseek(log.fileno(), 0, os.SEEK_CUR)
log.write(b"refused\n")
print(read("log"))
must(after == at, f"a refused restore has moved the output from {at} to {after}")
must(read("log") == "of the program\nof the shell, which goes on in the same file\nrefused\n", "lines are lost: " + repr(read("log")))
