"""A stopped job that is restored with --detach stays stopped when the restoring command ends, and SIGCONT lets it go on."""
from scenario import *

write("shell.sh", """
set -m
bash -c 'echo $BASHPID > worker; while [ ! -e end ]; do sleep 0.01; done; echo right > result; exit 7' &
while [ ! -s worker ]; do :; done
kill -STOP %1
while ! jobs | grep -q Stopped; do :; done
worker=$(cat worker)
"$HDCR" checkpoint $worker -o image --kill
wait %1
echo done > ready
while [ ! -e go ]; do sleep 0.01; done
"$HDCR" restore ./image --detach --stdio null
echo $? > restored
while [ ! -e end ]; do sleep 0.01; done
""")
start("bash", "shell.sh")
ready()
worker = int(read("worker"))
gone(worker)
write("go", "")
must(until("the restore", lambda: read("restored")) == "0\n", read("restored"))
must(status(worker, "State").startswith("T"), f"the job came back as {status(worker, 'State')}")
write("end", "")
os.killpg(worker, signal.SIGCONT)
must(until("the result", lambda: read("result")) == "right\n", read("result"))
gone(worker)
