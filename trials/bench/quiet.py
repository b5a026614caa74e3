# A small program of an interpreter: counts in a file that it holds open.
import os, sys, time

block = [i * i for i in range(50000)]
progress = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
turns = 0
while True:
    turns += 1
    os.pwrite(progress, b"%016d\n" % turns, 0)
    time.sleep(0.005)
