"""What `hdcr run` says of crashes stays in the file that it shares with the program, though this is cut back each time."""
from scenario import *

job = Job("sh", "-c", "echo begins >&2; touch ready; while [ ! -e go ]; do sleep 0.01; done; echo ends >&2")
ready()
job.checkpoint()
for crash in range(1, 4):
    job.crash()
    until("the crash to be told", lambda: f"restart {crash} of 9" in read("job.err"))
write("go", "")
job.end()
found = re.findall(r"restart (\d) of 9|(begins|ends)", read("job.err"))
found = [number or word for number, word in found]
must(found == ["begins", "1", "2", "3", "ends"], f"{found}: {read('job.err')}")
