"""A program goes back to a checkpoint of a life that it had given up: what it has done since is undone, what the image holds of
that life comes back, and it is said that not all is known."""
from scenario import *

if os.geteuid() != 0:
    lacks("only root can watch files")
PROGRAM = """
import json, os, socket, time
def order(*words):
    while True:
        try: word = open("../order").read()
        except FileNotFoundError: word = ""
        if word in words: return word
        time.sleep(0.01)
def put(path, text, mode="w"):
    with open(path, mode) as file: file.write(text)
def back(number):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.connect(os.environ["HDCR_CONTROL"])
        for ask in [{"hello": {"version": 1}}, {"rollback": {"to": number}}]:
            keeper.send(json.dumps(ask).encode())
            keeper.recv(65536)
put("log", "one ")
put("../first", "")
if order("A", "B") == "A":
    put("two", "two"); put("log", "two ", "a")
    put("../second", "")
    if order("back", "end") == "back": back(1)
else:
    put("three", "three"); put("log", "three ", "a"); os.rename("old", "older")
    put("../third", "")
    back(2)
"""
os.mkdir("work")
write("work/old", "old")
write("program.py", PROGRAM)
job = Job(sys.executable, "-S", "../program.py", cwd="work")
ready("first")
job.checkpoint()
write("order", "A")
ready("second")
job.checkpoint()
write("order", "back")
until("the first roll-back", lambda: "@1 as it asked for" in read("job.err") and "rolled back" in read("job.err"))
write("order", "B")
until("the second roll-back", lambda: "@2 as it asked for" in read("job.err"))
write("order", "end")
job.end()
have = {name: read(f"work/{name}") for name in sorted(os.listdir("work"))}
must(have == {"log": "one two ", "old": "old", "two": "two"}, f"it is not as it was: {have}\n{read('job.err')}")
must("rollback-incomplete" in read("job.err"), f"it is not said: {read('job.err')}")
