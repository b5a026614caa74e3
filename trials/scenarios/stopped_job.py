"""A stopped job comes back stopped, its shell knows it so, and SIGCONT lets it go on."""
from scenario import *

write("shell.sh", """
set -m
bash -c 'echo $BASHPID > worker; while [ ! -e end ]; do :; done; exit 7' &
while [ ! -s worker ]; do :; done
kill -STOP %1
while ! jobs | grep -q Stopped; do :; done
touch ready
while [ ! -e go ]; do sleep 0.01; done
jobs > seen
touch asked
while [ ! -e end ]; do sleep 0.01; done
fg %1 > /dev/null
printf "status %s" $? > result
""")
child = start("bash", "shell.sh")
ready()
worker = int(read("worker"))
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
gone(worker)
restore("image")
must(status(worker, "State").startswith("T"), f"the job came back as {status(worker, 'State')}")
write("go", "")
ready("asked")
must("Stopped" in read("seen"), f"the shell sees: {read('seen')}")
must(status(worker, "State").startswith("T"), "the job runs without having been continued")
os.kill(worker, signal.SIGCONT)
until("the job to run", lambda: status(worker, "State").startswith("R"))
os.kill(worker, signal.SIGSTOP)
until("the job to stop", lambda: status(worker, "State").startswith("T"))
write("end", "")
must(until("the result", lambda: read("result")) == "status 7", read("result"))
