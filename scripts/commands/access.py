"""`shoal keys`: make key pairs, and list which keys a coordinator lets in.

The one idea: standard output has only the key that the next command needs; advice goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shoal.protocol.door import ClientKeys, ServerKeys, client_keys, server_keys
from shoal.protocol.errors import UserError
from shoal.protocol.keys import KeyFolder

FORMS = ("", "new NAME", "allow PUBLIC [NAME]", "revoke PUBLIC|NAME", "signer NAME")


def keys(words: Sequence[str]) -> None:
    """Carry out `shoal keys WORDS`. Raises UserError."""
    folder = KeyFolder()
    match words:
        case []:
            _show(folder)
        case ["new", name]:
            print(folder.new(name).public)
            _advise(f"key {name} is in {folder.path}; type on the coordinator's machine: shoal keys allow PUBLIC {name}")
        case ["allow", public, *name] if len(name) <= 1:
            print(folder.allow(folder.public(public), *name))
        case ["revoke", who]:
            print(folder.revoke(who))
            _advise(f"{who} is shut out; coordinators that run notice within a second")
        case ["signer", name]:
            print(_signer(folder, name))
        case _:
            forms = ", ".join(f"shoal keys {form}".strip() for form in FORMS)
            raise UserError(f"shoal keys {' '.join(words)}: the forms are {forms}")


def _signer(folder: KeyFolder, name: str) -> str:
    """The public key that signs for the clients of this pair's actors in secure aggregation, 64 hexadecimal digits."""
    from shoal.jobs.members import signing_seed
    from shoal.protocol.sealing import signer_of

    seed = signing_seed(folder.pair(name).secret)
    try:
        return signer_of(seed).hex()
    except ModuleNotFoundError:
        raise UserError("shoal keys signer needs cryptography, which is not installed: pip install 'shoal[secagg]'") from None


def _show(folder: KeyFolder) -> None:
    for name in folder.names():
        print(f"own      {folder.public(name)}  {name}")
    for public, name in folder.allowed().items():
        print(f"allowed  {public}  {name}")
    if not folder.names():
        _advise(f"no key of your own in {folder.path} yet; make one: shoal keys new NAME")


def _advise(text: str) -> None:
    print(text, file=sys.stderr)


def of_coordinator(key: str | None) -> ServerKeys | None:
    """The keys of a coordinator, by its --key; None without --key. Raises UserError."""
    return server_keys(KeyFolder(), key) if key else None


def of_actor(key: str | None, server: str | None) -> ClientKeys | None:
    """The keys of an actor, by its --key and --server; None without both. Raises UserError."""
    if not key and not server:
        return None
    if not key:
        raise UserError("--server without --key: give the name of your own key too; make one with `shoal keys new NAME`")
    if not server:
        raise UserError("--key without --server: give the coordinator's public key too, which it printed when it started")
    return client_keys(KeyFolder(), key, server)
