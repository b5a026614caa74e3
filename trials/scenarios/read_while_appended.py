"""A file that the program only reads and somebody appends to all the time, also while the checkpoint is taken, is no obstacle to a restore."""
import threading

from scenario import *

PROGRAM = """
import os, time
file, seen = open("in"), open("seen", "w", buffering=1)
while not os.path.exists("go"):
    line = file.readline()
    if line:
        seen.write(line)
    else:
        time.sleep(0.002)
"""
over = threading.Event()


def append():
    """Adds a line about every millisecond."""
    number = 0
    while not over.wait(0.001):
        number += 1
        with open("in", "a") as file:
            file.write(f"{number}\n")


write("in", "")
writer = threading.Thread(target=append)
writer.start()
try:
    program = start("python3", "-c", PROGRAM)
    until("the first lines", lambda: read("seen").count("\n") > 20)
    for round in range(5):
        hdcr("checkpoint", program.pid if round == 0 else pid, "-o", f"image{round}", "--kill")
        program.wait() if round == 0 else gone(pid)
        pid = restore(f"image{round}")
        before = len(read("seen"))
        until("more lines", lambda: len(read("seen")) > before + 50)
finally:
    over.set()
    writer.join()
until("all lines", lambda: read("seen") == read("in"))
write("go", "")
