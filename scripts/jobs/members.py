"""The members of secure aggregation among actors from elsewhere: who plays each client, and which key signs for it.

The one idea: the list is a file that the actors' users agree on without the coordinator. The coordinator reads its copy to know
whom to ask. An actor believes its own copy and no other, so a coordinator cannot put keys of its own in place of clients'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.envs.devices import client_of, csv_rows
from shoal.protocol.errors import UserError
from shoal.protocol.private import key_of

HEXADECIMAL = re.compile(r"[0-9a-fA-F]{64}")
COLUMNS = ("client", "key", "signer")


@dataclass(frozen=True, slots=True)
class Member:
    """The owner of a client. key: public key that its actors prove to the coordinator, 64 hexadecimal digits. signer: public
    key that signs for its clients (Ed25519), 32 bytes."""

    key: str
    signer: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """The part in secure aggregation of an actor that joins from elsewhere. public, secret: its pair of `shoal keys`, in
    hexadecimal. members: path of its user's copy of the list. least: fewest clients in a sum that its user agrees to; 0: what
    the coordinator says."""

    public: str
    secret: str = field(repr=False)
    members: str
    least: int = 0


def read_members(path: str, clients: int) -> Mapping[int, Member]:
    """Return client -> its owner, from a CSV file with the columns client, key and signer in any order, and a row for each
    client from 0 to clients - 1. Raises UserError that names the file, the line and the fix."""
    found: dict[int, Member] = {}
    for line, row in csv_rows("members", path, COLUMNS, ()):
        client = client_of("members", path, line, row["client"])
        if client in found:
            raise UserError(f"members={path}: line {line} is a second row for client {client}; a client has one owner")
        for name, command in (("key", "new"), ("signer", "signer")):
            if not HEXADECIMAL.fullmatch(row[name]):
                raise UserError(
                    f"members={path}: line {line} has {name}={row[name][:80]!r}: expected 64 hexadecimal digits; "
                    f"`shoal keys {command} NAME` prints them"
                )
        found[client] = Member(row["key"].lower(), bytes.fromhex(row["signer"]))
    if lacking := [client for client in range(clients) if client not in found]:
        shown = ", ".join(map(str, lacking[:8])) + ", ..." * (len(lacking) > 8)
        raise UserError(f"members={path}: {len(lacking)} of clients={clients} have no row ({shown}); give each client a row")
    return {client: found[client] for client in range(clients)}


def signing_seed(secret: str) -> bytes:
    """Return the seed of the signing key of a pair, 32 bytes that follow from the pair's secret key and do not tell it."""
    return key_of(bytes.fromhex(secret), "shoal signer")
