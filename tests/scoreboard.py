"""What a campaign tried, and what survived: one row for each, as a table at the end of the session."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

PROPERTY = "campaign"
HEADER = ("campaign", "tried", "survived", "lost", "how")


@dataclass
class Score:
    """Count each try with `trial`; `name` and `how` (seeds, sizes) are told by the campaign."""

    name: str = ""
    how: str = ""
    tried: int = 0
    survived: int = 0

    def start(self, name: str, how: str) -> "Score":
        self.name, self.how = name, how
        return self

    @contextmanager
    def trial(self) -> Iterator[None]:
        """One try: survived if the block ends without an exception, else lost."""
        self.tried += 1
        yield
        self.survived += 1

    @property
    def row(self) -> list[str]:
        return [self.name, str(self.tried), str(self.survived), str(self.tried - self.survived), self.how]


@pytest.fixture
def score(record_property) -> Iterator[Score]:
    """The row is kept whether the test passes or fails, and reaches the session's table from any test process."""
    score = Score()
    yield score
    if score.name:
        record_property(PROPERTY, score.row)


def rows_of(reports) -> list[list[str]]:
    """The rows in the reports of a session, each test's once."""
    ends = (report for report in reports if getattr(report, "when", "") == "teardown")
    return [list(value) for report in ends for name, value in report.user_properties if name == PROPERTY]


def summed(rows: list[list[str]]) -> list[list[str]]:
    """Rows of the same campaign become one, and the last one is the sum of all."""
    found: dict[str, list[str]] = {}
    for name, *counts, how in rows:
        former = found.get(name, [name, "0", "0", "0", ""])
        words = list(dict.fromkeys(word for word in (*former[4].split("; "), how) if word))
        found[name] = [name, *(str(int(a) + int(b)) for a, b in zip(former[1:4], counts, strict=True)), "; ".join(words)]
    sums = [str(sum(int(row[column]) for row in found.values())) for column in (1, 2, 3)]
    return [*found.values(), ["in all", *sums, ""]]


def table(rows: list[list[str]]) -> list[str]:
    lines = [list(HEADER), *summed(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return ["  ".join(cell.rjust(width) if 0 < column < 4 else cell.ljust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in lines]
