"""A checkpoint algorithm of one's own in Python, for ``hdcr run --algorithm 'exec:python3 RULE.py'``.

Subclass ``Algorithm``, override what matters, and call ``serve``::

    from hdcr import algorithm

    class EveryMinute(algorithm.Algorithm):
        def due(self, now, event, facts):
            return algorithm.full()

        def started(self, now, event, facts):
            return algorithm.wake(60)

        recovered = checkpointed = not_checkpointed = started

    algorithm.serve(EveryMinute())

``print`` writes to standard error, where HDCR shows it: standard output belongs to the protocol, which is described in
docs/algorithms.md. An exception ends the algorithm; HDCR decides by a rule of its own and starts it again.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, IO, List, Optional, Union

__all__ = ["Algorithm", "BEGIN", "GIVE_UP", "any_kind", "full", "increment", "serve", "wake"]

#: Version of the protocol.
VERSION = 1
#: For ``recover``: begin anew (where there are checkpoints, the oldest of them).
BEGIN = "begin"
#: For ``recover``: the job ends, and its checkpoints stay.
GIVE_UP = "give_up"

Decision = Optional[Dict[str, Any]]
Message = Dict[str, Any]


def wake(seconds: float) -> Decision:
    """To be asked again, by ``due``, after so many seconds."""
    return {"in_s": float(seconds)}


def full() -> Decision:
    """A full checkpoint, now."""
    return {"checkpoint": "full"}


def increment() -> Decision:
    """A checkpoint on top of the one before, now."""
    return {"checkpoint": "increment"}


def any_kind() -> Decision:
    """A checkpoint now, of whichever kind HDCR finds cheaper."""
    return {"checkpoint": "any"}


class Algorithm:
    """One method an event; each returns a decision, or ``None`` for nothing and as said before.

    ``now`` is the time in seconds since the job began, ``event`` and ``facts`` are the dictionaries of the protocol.
    """

    #: What people see.
    name = ""
    #: To be told that the program does nothing (``idle``).
    wants_idleness = False

    def started(self, now: float, event: Message, facts: Message) -> Decision:
        """The program runs: it has begun, or this algorithm has."""
        return None

    def due(self, now: float, event: Message, facts: Message) -> Decision:
        """The time that was asked for has come."""
        return any_kind()

    def checkpointed(self, now: float, event: Message, facts: Message) -> Decision:
        """A checkpoint is durable: ``kind``, ``stopped_s``, ``total_s``, ``bytes``."""
        return None

    def not_checkpointed(self, now: float, event: Message, facts: Message) -> Decision:
        """One has failed, ``failures`` in a row."""
        return None

    def recovered(self, now: float, event: Message, facts: Message) -> Decision:
        """The program runs again after a crash; that took ``took_s``."""
        return None

    def notice(self, now: float, event: Message, facts: Message) -> Decision:
        """The end is announced; ``grace_s`` is the time that is left, when it is known."""
        return any_kind()

    def idle(self, now: float, event: Message, facts: Message) -> Decision:
        """The program has used no CPU time for ``idle_s``."""
        return None

    def good_moment(self, now: float, event: Message, facts: Message) -> Decision:
        """The program says that this is a good moment."""
        return None

    def forget(self, kept: List[Message]) -> Optional[List[int]]:
        """Numbers of the checkpoints that are given up; ``None``: all but the newest three."""
        return None

    def recover(self, fault: Message, kept: List[Message]) -> Union[int, str, None]:
        """The number of the checkpoint that such a fault is followed by, ``BEGIN``, ``GIVE_UP``, or ``None`` for what HDCR
        does by itself. Asked beforehand."""
        return None


def _answer(algorithm: Algorithm, question: Message) -> Message:
    answer: Message = {"id": question["id"]}
    asked = question["ask"]
    if asked == "decide":
        method = getattr(algorithm, question["event"], None)
        answer.update((method and method(question["now_s"], question, question["facts"])) or {})
    elif asked == "forget":
        gone = algorithm.forget(question["kept"])
        if gone is not None:
            answer["forget"] = [int(number) for number in gone]
    elif asked == "recover":
        back = algorithm.recover(question["fault"], question["kept"])
        if back is not None:
            answer["recover"] = back if isinstance(back, str) else {"rollback": int(back)}
    return answer


def serve(algorithm: Algorithm, input: Optional[IO[str]] = None, output: Optional[IO[str]] = None) -> None:
    """Answers questions until there are no more."""
    source, sink = input or sys.stdin, output or sys.stdout
    if output is None:
        # What the algorithm prints is not for the keeper.
        sys.stdout = sys.stderr

    def say(message: Message) -> None:
        sink.write(json.dumps(message, allow_nan=False) + "\n")
        sink.flush()

    hello = source.readline()
    if not hello:
        return
    version = min(VERSION, json.loads(hello)["hdcr"])
    say({"hdcr": version, "name": algorithm.name, "idle": algorithm.wants_idleness})
    for line in source:
        say(_answer(algorithm, json.loads(line)))
