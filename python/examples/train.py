"""A training loop: logistic regression by gradient descent, with a journal of its losses.

    hdcr run -- python3 train.py RESULT

It runs without HDCR just as well. With it: a checkpoint at the end of each epoch, a section in which the journal and the
weights are brought to the same state, a hook that writes out what is buffered, and one that says what happened.
"""

import hashlib
import sys
import time

import numpy as np

import hdcr

EPOCHS, STEPS = 12, 50


def main() -> None:
    random = np.random.default_rng(7)
    inputs = random.standard_normal((2000, 40))
    labels = (inputs @ random.standard_normal(40) > 0).astype(float)
    weights = np.zeros(40)
    journal = open("journal", "w", buffering=1 << 16)

    @hdcr.before()
    def write_out() -> None:
        journal.flush()

    @hdcr.on_restored()
    def tell(life: hdcr.Restored) -> None:
        print(f"life {life.count}, from {life.image} ({life.reason})", file=sys.stderr, flush=True)

    for epoch in range(EPOCHS):
        for step in range(STEPS):
            chosen = random.integers(0, len(inputs), 64)
            guess = 1 / (1 + np.exp(-inputs[chosen] @ weights))
            with hdcr.section("journal"):
                weights -= 0.1 * inputs[chosen].T @ (guess - labels[chosen]) / len(chosen)
                journal.write(f"{epoch} {step} {np.abs(guess - labels[chosen]).mean():.12f}\n")
            time.sleep(0.004)
        print(f"step {(epoch + 1) * STEPS}", flush=True)
        if hdcr.is_enabled():
            outcome = hdcr.checkpoint()
            if isinstance(outcome, hdcr.Failed):
                print(f"no checkpoint: {outcome.message}", file=sys.stderr, flush=True)
    journal.close()
    digest = hashlib.sha256(weights.tobytes() + open("journal", "rb").read()).hexdigest()
    with open(sys.argv[1], "w") as out:
        out.write(digest + "\n")


main()
