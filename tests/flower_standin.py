"""The part of flwr that a NumPyClient's file imports, for machines where flwr is not installed."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class NumPyClient:
    """As flwr's: `to_client` puts an object around the client."""

    def to_client(self) -> Any:
        return SimpleNamespace(numpy_client=self, fit=lambda ins: None)


def flwr_or_stand_in(monkeypatch: pytest.MonkeyPatch) -> bool:
    """True if flwr is installed; else puts a stand-in in its place for one test."""
    if importlib.util.find_spec("flwr") is not None:
        return True
    package, client = ModuleType("flwr"), ModuleType("flwr.client")
    client.NumPyClient = NumPyClient  # type: ignore[attr-defined]
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "flwr", package)
    monkeypatch.setitem(sys.modules, "flwr.client", client)
    return False
