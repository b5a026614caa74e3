"""Says to the keeper what it should not: nonsense, too much, from too many connections at once; then a checkpoint is made."""

import json
import os
import socket
import sys
import time


def connect():
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(30)
    for _ in range(3000):
        try:
            link.connect(os.environ["HDCR_CONTROL"])
            return link
        except BlockingIOError:
            # Too many wait to be let in.
            time.sleep(0.01)
    sys.exit("nobody is let in")


def answer(link):
    try:
        return link.recv(1 << 17)
    except ConnectionResetError:
        return b""


def hello():
    link = connect()
    link.send(b'{"hello":{"version":77}}')
    return json.loads(answer(link))["welcome"]["job"]


if sys.argv[1:] == ["outside"]:
    link = connect()
    try:
        link.send(b'{"hello":{"version":1}}')
    except BrokenPipeError:
        pass
    print("unheard" if answer(link) == b"" else "heard")
    sys.exit()

for packet in (
    b"\xff" * 100,
    b"[" * 65536,
    b" " * 100000,
    b"{}",
    b'{"rollback":{"to":-1}}',
    b'{"veto":{"round":1}}',
    b'{"ready":{"round":18446744073709551615}}',
    b'{"omit":{"ranges":[[5,1],[0,18446744073709551615]]}} and more',
):
    link = connect()
    link.send(packet)
    assert answer(link) == b"", packet

link = connect()
link.send(json.dumps({"omit": {"ranges": [[n, n + 1] for n in range(2000)]}}).encode())
assert json.loads(answer(link))["failed"]["code"] == "too-many-regions"

# One that attends and does not answer holds up no checkpoint for longer than some seconds; one that says what nobody asked
# for has no say.
silent, babbling = connect(), connect()
silent.send(b'{"attend":{}}')
babbling.send(b'{"attend":{}}')
babbling.send(b'{"veto":{"round":0,"permanent":false,"text":"never"}}')
many = [connect() for _ in range(600)]
for link in many[:400]:
    link.close()
assert hello() == os.environ["HDCR_JOB"]
link = connect()
link.settimeout(120)
link.send(b'{"checkpoint":{"timeout_ms":18446744073709551615}}')
said = json.loads(answer(link))
assert said.get("continued") or said["restored"]["reason"] == "hand", said
print("done", flush=True)
