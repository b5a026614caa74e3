"""numpy at work on some 200 MiB, telling its gaps as ticks.h says."""
import time

import numpy as np

rng = np.random.default_rng(7)
data = rng.standard_normal((26, 1 << 20))
begun = last = time.monotonic_ns() // 1000
gap = ended = count = row = 0
while True:
    part = data[row % 26, (row % 64) << 14 : ((row % 64) + 1) << 14]
    np.tanh(part, out=part)
    row += 1
    now = time.monotonic_ns() // 1000
    if now - last >= gap:
        gap, ended = now - last, now
    last = now
    if now - begun >= 1_000_000:
        count += 1
        print(f"tick {count} max_gap_us {gap} ended_us {ended}", flush=True)
        begun = last = time.monotonic_ns() // 1000
        gap = 0
