"""In a log that the program writes too, what a roll-back cuts off is said again as long as it holds: that the job runs on without
new checkpoints."""
from scenario import *
import socket

server = socket.create_server(("127.0.0.1", 0))
program = f"""
import os, socket, time
connection, number = None, 0
while not os.path.exists("go"):
    number += 1
    print("line", number, flush=True)
    if connection is None and os.path.exists("more"):
        connection = socket.create_connection(("127.0.0.1", {server.getsockname()[1]}))
    time.sleep(0.01)
"""
TROUBLE = "runs on without a new checkpoint"
with open("log", "a") as log:
    job = Job("/usr/bin/python3", "-c", program, every="200ms", stdout=log, stderr=log)
until("output", lambda: "line 5" in read("log"))
job.checkpoint()
write("more", "")
until("the trouble", lambda: TROUBLE in read("log"))
for crash in range(1, 3):
    job.crash()
    until("it is said again", lambda: TROUBLE in read("log").partition(f"restart {crash} of")[2])
write("go", "")
job.end()
