"""Standard output is a pipe of a batch system: `hdcr run` rolls back into it, `checkpoint --kill` and `restore` into another."""
from scenario import *

write("talk.sh", "i=0; while [ ! -e go ]; do i=$((i+1)); echo line $i; sleep 0.002; done; echo end\n")


def reader(name):
    """A batch system: reads a pipe into a file."""
    out, into = os.pipe()
    child = subprocess.Popen(["cat"], stdin=out, stdout=open(name, "w"), start_new_session=True)
    os.close(out)
    return child, into


def numbers(name):
    return [int(line.split()[1]) for line in read(name).splitlines() if line.startswith("line ")]


cat, pipe = reader("first")
job = Job("bash", "talk.sh", stdout=pipe)
os.close(pipe)
until("output", lambda: len(numbers("first")) > 20)
job.checkpoint()
upto = len(numbers("first"))
until("more output", lambda: len(numbers("first")) > upto + 50)
job.crash()
upto = max(numbers("first"))
until("output after the rollback", lambda: numbers("first")[-1] > upto)
found = numbers("first")
back = [i for i in range(1, len(found)) if found[i] != found[i - 1] + 1]
must(len(back) == 1 and found[back[0]] <= found[back[0] - 1] + 1, "the rollback does not go on from one earlier place")
write("go", "")
job.end()
must(read("first").endswith("end\n"), "the end is missing")
until("the reader's end", lambda: cat.poll() is not None)

os.remove("go")
cat, pipe = reader("second")
child = start("bash", "talk.sh", stdout=pipe)
os.close(pipe)
until("output", lambda: len(numbers("second")) > 20)
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
until("the reader's end: nothing holds the pipe any more", lambda: cat.poll() is not None)
cat, pipe = reader("third")
front = subprocess.Popen([HDCR, "restore", "image"], stdin=subprocess.DEVNULL, stdout=pipe, stderr=open("err", "w"))
os.close(pipe)
until("output of the restored program", lambda: len(numbers("third")) > 20)
write("go", "")
until("the end of the restore", lambda: front.poll() is not None)
must(front.returncode == 0, f"restore ended with {front.returncode}: {read('err')}")
until("the reader's end", lambda: cat.poll() is not None)
whole = numbers("second") + numbers("third")
must(whole == list(range(1, len(whole) + 1)), "lines lost or twice between both pipes")
