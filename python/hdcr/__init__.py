"""The checkpoint library: what a program under ``hdcr run`` may ask of HDCR, and what it is told.

A program needs none of this to be checkpointed and rolled back. It stands on the C library (``hdcr.h``): found beside this
file, at the path in ``HDCR_LIBRARY``, or where the dynamic linker looks. Without it, as without HDCR, every call returns at
once and ``is_enabled()`` is false.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Union

__all__ = [
    "Continued",
    "Failed",
    "Outcome",
    "Request",
    "Restored",
    "Section",
    "Veto",
    "after",
    "before",
    "checkpoint",
    "exclude",
    "good_moment",
    "include",
    "is_enabled",
    "job",
    "off",
    "on_restored",
    "request",
    "restart_count",
    "restored",
    "rollback",
    "secret",
    "section",
]


@dataclass(frozen=True)
class Continued:
    """The checkpoint is durable, and the program goes on."""

    image: str


@dataclass(frozen=True)
class Restored:
    """A later life: the program was brought back from an image that was taken while it waited."""

    count: int
    image: str
    #: ``crash``, ``rollback``, ``resume`` or ``hand``.
    reason: str
    #: Seconds from the checkpoint to the restore, by the clock of the day.
    passed: float


@dataclass(frozen=True)
class Failed:
    """There is no checkpoint, and the program goes on as before."""

    #: ``refused``, ``changed``, ``failed`` or ``corrupt``.
    class_: str
    code: str
    message: str


Outcome = Union[Continued, Restored, Failed]


class Veto(Exception):
    """Raised by a hook before a checkpoint: not this one, or (``permanent``) none as long as this process lives."""

    def __init__(self, text: str, code: int = 1, permanent: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.code = max(1, abs(code))
        self.permanent = permanent


class _Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("timeout_ms", ctypes.c_uint64)]


class _Report(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("count", ctypes.c_uint64),
        ("passed_ms", ctypes.c_uint64),
        ("class_", ctypes.c_int),
        ("reserved", ctypes.c_int),
        ("image", ctypes.c_char * 320),
        ("reason", ctypes.c_char * 32),
        ("code", ctypes.c_char * 64),
        ("message", ctypes.c_char * 1024),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("when", ctypes.c_int),
        ("captured", ctypes.c_int),
        ("report", ctypes.POINTER(_Report)),
        ("text", ctypes.POINTER(ctypes.c_char)),
        ("room", ctypes.c_size_t),
    ]


_Hook = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Event), ctypes.c_void_p)

_CONTINUED, _RESTORED, _PENDING, _FAILED = 0, 1, 2, -1
_BEFORE, _AFTER, _AFTER_RESTORE = 1, 2, 3
_CLASSES = {1: "refused", 2: "changed", 3: "failed", 4: "corrupt"}


def _find() -> Optional[ctypes.CDLL]:
    beside = Path(__file__).with_name("libhdcr.so")
    given = os.environ.get("HDCR_LIBRARY")
    why = ""
    for path in ([given] if given else []) + [str(beside), "libhdcr.so.0", "libhdcr.so"]:
        try:
            return _typed(ctypes.CDLL(path))
        except OSError as error:
            why = why or str(error)
    if given or "HDCR_CONTROL" in os.environ:
        # Whoever relies on `secret` must not learn of it by what is in an image.
        warnings.warn(
            f"libhdcr.so is not found ({why}): checkpoint(), hooks, sections, exclude() and secret() do nothing; "
            "set HDCR_LIBRARY to the library (cargo build --release -p hdcr makes target/release/libhdcr.so), "
            "or put it beside this package",
            RuntimeWarning,
            stacklevel=3,
        )
    return None


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    report, options, pointer = ctypes.POINTER(_Report), ctypes.POINTER(_Options), ctypes.c_void_p
    for name, result, arguments in (
        ("hdcr_is_enabled", ctypes.c_int, []),
        ("hdcr_job", ctypes.c_ssize_t, [ctypes.c_char_p, ctypes.c_size_t]),
        ("hdcr_restart_count", ctypes.c_uint64, []),
        ("hdcr_good_moment", None, []),
        ("hdcr_restored", ctypes.c_int, [report]),
        ("hdcr_checkpoint", ctypes.c_int, [options, report]),
        ("hdcr_rollback", ctypes.c_int, [ctypes.c_uint64, report]),
        ("hdcr_request_begin", pointer, [options, report]),
        ("hdcr_request_fd", ctypes.c_int, [pointer]),
        ("hdcr_request_wait", ctypes.c_int, [pointer, ctypes.c_int64, report]),
        ("hdcr_request_free", None, [pointer]),
        ("hdcr_exclude", ctypes.c_int, [pointer, ctypes.c_size_t, report]),
        ("hdcr_secret", ctypes.c_int, [pointer, ctypes.c_size_t, report]),
        ("hdcr_include", ctypes.c_int, [pointer, ctypes.c_size_t, report]),
        ("hdcr_on", ctypes.c_uint64, [ctypes.c_int, ctypes.c_int, _Hook, pointer]),
        ("hdcr_off", None, [ctypes.c_uint64]),
        ("hdcr_section_new", pointer, [ctypes.c_char_p]),
        ("hdcr_enter", None, [pointer]),
        ("hdcr_try_enter", ctypes.c_int, [pointer]),
        ("hdcr_leave", None, []),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_library = _find()
_lock = threading.Lock()
#: What the library may call must not be thrown away.
_hooks: dict[int, object] = {}
_ABSENT = Failed("refused", "no-keeper", "the program does not run under `hdcr run`, or libhdcr is not found")


def _new_report() -> _Report:
    return _Report(size=ctypes.sizeof(_Report))


def _new_options(timeout: Optional[float]) -> _Options:
    return _Options(ctypes.sizeof(_Options), 0 if timeout is None else max(1, int(timeout * 1000)))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _restored(report: _Report) -> Restored:
    return Restored(report.count, _text(report.image), _text(report.reason), report.passed_ms / 1000)


def _outcome(branch: int, report: _Report) -> Outcome:
    if branch == _CONTINUED:
        return Continued(_text(report.image))
    if branch == _RESTORED:
        return _restored(report)
    return Failed(_CLASSES.get(report.class_, "failed"), _text(report.code), _text(report.message))


def is_enabled() -> bool:
    """Whether this program runs under a keeper that has answered."""
    return _library is not None and bool(_library.hdcr_is_enabled())


def job() -> Optional[str]:
    """The name of the job; ``None`` without HDCR."""
    name = ctypes.create_string_buffer(512)
    if _library is None or _library.hdcr_job(name, len(name)) < 0:
        return None
    return _text(name.value)


def restart_count() -> int:
    """How often the job was brought back from a checkpoint, or begun anew after a crash."""
    return _library.hdcr_restart_count() if _library else 0


def good_moment() -> None:
    """Says that this is a good moment for a checkpoint: ``--algorithm cooperative`` waits for one."""
    if _library:
        _library.hdcr_good_moment()


def restored() -> Optional[Restored]:
    """Where this life of the program came from; ``None`` when it was never restored."""
    report = _new_report()
    if _library is None or not _library.hdcr_restored(ctypes.byref(report)):
        return None
    return _restored(report)


def checkpoint(timeout: Optional[float] = None) -> Outcome:
    """Takes a checkpoint of the whole job and waits until it is durable.

    Returns ``Continued``, and ``Restored`` in every life that begins from an image in which this call was under way;
    ``Failed`` when there is no checkpoint. ``timeout``: how many seconds the job may stand still for it.
    """
    if _library is None:
        return _ABSENT
    report = _new_report()
    branch = _library.hdcr_checkpoint(ctypes.byref(_new_options(timeout)), ctypes.byref(report))
    return _outcome(branch, report)


def rollback(to: Optional[int] = None) -> Failed:
    """Gives up this life of the job and goes back to a checkpoint, the newest one or the one with this number.

    Returns only when that cannot be done.
    """
    if _library is None:
        return _ABSENT
    report = _new_report()
    _library.hdcr_rollback(to or 0, ctypes.byref(report))
    outcome = _outcome(_FAILED, report)
    assert isinstance(outcome, Failed)
    return outcome


class Request:
    """A checkpoint that was asked for. Its descriptor can be read (``select``) when it is met or has failed."""

    def __init__(self, pointer: int) -> None:
        self._pointer: Optional[int] = pointer

    def fileno(self) -> int:
        return _library.hdcr_request_fd(self._pointer) if _library else -1

    def wait(self, limit: Optional[float] = None) -> Optional[Outcome]:
        """What became of it, or ``None`` when that is not known after so many seconds. It is said once."""
        assert _library is not None
        report = _new_report()
        limit_ms = -1 if limit is None else int(limit * 1000)
        branch = _library.hdcr_request_wait(self._pointer, limit_ms, ctypes.byref(report))
        return None if branch == _PENDING else _outcome(branch, report)

    def close(self) -> None:
        """Does not want it any more: a checkpoint that has not begun is not taken."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and _library is not None:
            _library.hdcr_request_free(pointer)

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def request(timeout: Optional[float] = None) -> Union[Request, Failed]:
    """Asks for a checkpoint and does not wait for it."""
    if _library is None:
        return _ABSENT
    report = _new_report()
    pointer = _library.hdcr_request_begin(ctypes.byref(_new_options(timeout)), ctypes.byref(report))
    if pointer:
        return Request(pointer)
    outcome = _outcome(_FAILED, report)
    assert isinstance(outcome, Failed)
    return outcome


def _of_memory(call: str, buffer: object) -> Optional[Failed]:
    if _library is None:
        return _ABSENT
    view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
    if view.readonly:
        raise TypeError("memory that is left out must be writable")
    start = ctypes.addressof((ctypes.c_char * 0).from_buffer(view))
    report = _new_report()
    if getattr(_library, call)(start, view.nbytes, ctypes.byref(report)) == 0:
        return None
    outcome = _outcome(_FAILED, report)
    assert isinstance(outcome, Failed)
    return outcome


def exclude(buffer: object) -> Optional[Failed]:
    """Leaves the memory of a buffer (a numpy array, a bytearray, an mmap) out of checkpoints, for what can be computed
    again: its whole pages hold zeros in every life that begins from an image. Keep the buffer, and ``include`` it before
    it is thrown away. ``None``, or why it cannot be done."""
    return _of_memory("hdcr_exclude", buffer)


def secret(buffer: object) -> Optional[Failed]:
    """The same for what nobody else may see; to be called before the secret is written to it."""
    return _of_memory("hdcr_secret", buffer)


def include(buffer: object) -> Optional[Failed]:
    """Keeps the memory of a buffer again."""
    return _of_memory("hdcr_include", buffer)


def _on(when: int, order: int, hook: Callable[[_Event], int]) -> int:
    if _library is None:
        return 0

    def call(event: "ctypes._Pointer[_Event]", _data: Optional[int]) -> int:
        return hook(event.contents)

    kept = _Hook(call)
    with _lock:
        number = _library.hdcr_on(when, order, kept, None)
        _hooks[number] = kept
    return number


def before(order: int = 0) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Before each checkpoint, in ascending order, on a thread of the library. ``Veto`` is its way to say no; any other
    exception is a veto as well, with its text."""

    def set_it(function: Callable[[], None]) -> Callable[[], None]:
        def hook(event: _Event) -> int:
            try:
                function()
            except Veto as veto:
                _say(event, veto.text)
                return -veto.code if veto.permanent else veto.code
            except BaseException as error:  # noqa: BLE001: nothing may be thrown into C
                _say(event, f"{type(error).__name__}: {error}")
                return 1
            return 0

        function.hdcr_hook = _on(_BEFORE, order, hook)  # type: ignore[attr-defined]
        return function

    return set_it


def _say(event: _Event, text: str) -> None:
    bytes_ = text.encode(errors="replace")[: max(0, event.room - 1)] + b"\0"
    ctypes.memmove(event.text, bytes_, len(bytes_))


def after(order: int = 0) -> Callable[[Callable[[bool], None]], Callable[[bool], None]]:
    """After each checkpoint before which hooks were called, in descending order; told whether the program was captured."""

    def set_it(function: Callable[[bool], None]) -> Callable[[bool], None]:
        def hook(event: _Event) -> int:
            function(bool(event.captured))
            return 0

        function.hdcr_hook = _on(_AFTER, order, hook)  # type: ignore[attr-defined]
        return function

    return set_it


def on_restored(order: int = 0) -> Callable[[Callable[[Restored], None]], Callable[[Restored], None]]:
    """In each life that begins from an image, in descending order."""

    def set_it(function: Callable[[Restored], None]) -> Callable[[Restored], None]:
        def hook(event: _Event) -> int:
            function(_restored(event.report.contents))
            return 0

        function.hdcr_hook = _on(_AFTER_RESTORE, order, hook)  # type: ignore[attr-defined]
        return function

    return set_it


def off(function: Callable[..., None]) -> None:
    """Takes a hook away."""
    number = getattr(function, "hdcr_hook", 0)
    if number and _library is not None:
        _library.hdcr_off(number)


class Section:
    """A critical section, as a context: no checkpoint is taken while some thread is in one. May be nested."""

    def __init__(self, label: str) -> None:
        self._pointer = _library.hdcr_section_new(label.encode()) if _library else None

    def __enter__(self) -> Section:
        if _library is not None:
            _library.hdcr_enter(self._pointer)
        return self

    def __exit__(self, *_: object) -> None:
        if _library is not None:
            _library.hdcr_leave()


_sections: dict[str, Section] = {}


def section(label: str) -> Section:
    """The section with this label."""
    with _lock:
        if label not in _sections:
            _sections[label] = Section(label)
        return _sections[label]
