"""Facts about processes that end with their parent, and print no error but their own."""

from __future__ import annotations

import sys

import pytest

from shoal.faults.patient import ran as finished

FORK = """
import os
from shoal.protocol.parent import forked

def life():
    {life}

try:
    {{}}["what the caller deals with"]
except KeyError:
    _, status = os.waitpid(forked(life), 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("life", "code", "error"),
    [
        ("return 7", 7, ""),
        ("return None", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("raise SystemExit(3)", 1, "SystemExit: 3"),
    ],
)
def test_a_copy_made_where_an_exception_is_dealt_with_prints_none_unless_it_has_its_own(
    life: str, code: int, error: str
) -> None:
    ran = finished([sys.executable, "-c", FORK.format(life=life)])
    assert ran.returncode == 0
    assert ran.stdout == f"{code}\n"
    assert bool(ran.stderr) == bool(error)
    assert error in ran.stderr.strip().rpartition("\n")[2]


def test_a_gateway_process_whose_parent_has_ended_ends_at_once() -> None:
    orphan = [sys.executable, "-m", "shoal.protocol.gate", "0", "0"]  # no process has a parent of number 0 but the first
    assert finished(orphan).returncode == 1
