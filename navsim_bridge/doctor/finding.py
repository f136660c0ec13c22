"""What a check says: one line, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "warning", "ERROR"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str  # OK, WARNING (does not fail the report) or ERROR
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8}{self.what}" + (f" -> {self.remedy}" if self.remedy else "")


def verdict(problem: str, remedy: str, good: str, level: str = ERROR) -> Finding:
    """The problem with its remedy, or that all is ``good`` where there is none (an empty text)."""
    return Finding(level, problem, remedy) if problem else Finding(OK, good)
