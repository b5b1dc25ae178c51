"""Every answer of a teacher, in one SQLite file, so that none is paid for twice."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple

from .errors import UserError


class Kept(NamedTuple):
    """What is kept of an answer."""

    text: str
    finish_reason: str
    tokens: int


class Answers:
    """Answers by the digest of their request. Threads may share it, and processes the file."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; without a path they are kept in memory only. Raises UserError if it is no
        such file."""
        self._lock, self._path = threading.Lock(), path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # every statement commits by itself, and a second run that writes at the same time is waited for
            self._file = sqlite3.connect(
                path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode = WAL")
            # no waiting for the disk: a kill of this process loses nothing, only a power cut a last moment
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, "
                "text TEXT NOT NULL, finish_reason TEXT NOT NULL, tokens INTEGER NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"the teacher's answers cannot be kept in {path}: {error}") from error

    def get(self, key: str) -> Kept | None:
        """The answer to this request, if there was one. Raises UserError if the file cannot be read."""
        try:
            with self._lock:
                asked = self._file.execute(
                    "SELECT text, finish_reason, tokens FROM answers WHERE key = ?", (key,)
                )
                row = asked.fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(f"the teacher's answers cannot be read from {self._path}: {error}") from error
        return Kept(*row) if row else None

    def put(self, key: str, kept: Kept) -> None:
        """Keep an answer; when this returns, a kill does not lose it. Raises UserError if it cannot be."""
        # a lone surrogate is no text for SQLite, and would lose the answer
        text = kept.text.encode("utf-8", "replace").decode("utf-8")
        try:
            with self._lock:
                self._file.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, text, *kept[1:])
                )
        except sqlite3.DatabaseError as error:
            raise UserError(f"an answer of the teacher cannot be kept in {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()
