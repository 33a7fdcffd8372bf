"""Identities beyond this machine: key pairs, and the list of keys that a coordinator lets in, as small files in one folder.

The one idea: an identity is a CURVE25519 public key and nothing else, written as 64 hexadecimal digits, which survive any
shell, file name and log. The list of allowed keys is read again whenever its file changes, so a key is let in or shut out
while a run goes on.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from shoal.protocol.durable import sync_folder
from shoal.protocol.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")  # shorter than a key, so that no name can be taken for one
PUBLIC = re.compile(r"[0-9a-fA-F]{64}")
ALLOWED = "allowed"
SECRET = "runs.secret"  # file of the secret that signs this user's runs
READ_AGAIN = 0.5  # seconds between two looks at the list's file


def public_of(text: str) -> str:
    """A public key as 64 lower-case hexadecimal digits, from these or from ZeroMQ's 40 characters (z85). Raises UserError."""
    if PUBLIC.fullmatch(text):
        return text.lower()
    if len(text) == 40 and text.isascii():
        with contextlib.suppress(ValueError, KeyError, struct.error):  # all that pyzmq was seen to raise
            raw = z85.decode(text.encode())
            if len(raw) == 32 and z85.encode(raw) == text.encode():
                return raw.hex()
    raise UserError(f"{text[:80]!a} is not a public key: give the 64 hexadecimal digits that `shoal keys new` printed")


def z85_of(public: str) -> bytes:
    """A key in the 40 characters that ZeroMQ's options take."""
    encoded: bytes = z85.encode(bytes.fromhex(public))
    return encoded


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair, both keys in hexadecimal. `repr` leaves the secret out, so that it stays out of logs."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Pair:
        if not zmq.has("curve"):
            raise UserError("this pyzmq was built without CURVE: install a wheel of it (pip install --force-reinstall pyzmq)")
        public, secret = zmq.curve_keypair()
        return cls(z85.decode(public).hex(), z85.decode(secret).hex())

    @classmethod
    def of_secret(cls, secret: str) -> Pair:
        """The pair of a secret key. Raises ValueError if `secret` is no key."""
        return cls(z85.decode(zmq.curve_public(z85_of(secret))).hex(), secret)


class KeyFolder:
    """A folder of keys: NAME.key (secret) and NAME.pub for each pair of its owner, and `allowed`, with a line for each key that
    a coordinator lets in: the key, a blank, its name. The folder has mode 0700, its files 0600; they are written whole or not
    at all. path: None: $SHOAL_KEYS, or ~/.config/shoal if that is not set."""

    def __init__(self, path: Path | None = None) -> None:
        asked = os.environ.get("SHOAL_KEYS")
        self.path = path or (Path(asked) if asked else Path.home() / ".config" / "shoal")
        self.allowed_path = self.path / ALLOWED

    # One's own pairs

    def new(self, name: str) -> Pair:
        """Make a pair. Raises UserError if the name is malformed or taken."""
        _check_name(name)
        pair = Pair.new()
        with self._locked():
            if self._file(name, "key").exists():
                raise UserError(f"key {name} exists already in {self.path}: take another name, or remove {name}.key")
            self._write(self._file(name, "key"), pair.secret)
            self._write(self._file(name, "pub"), pair.public)
        return pair

    def pair(self, name: str) -> Pair:
        """The pair of that name. Raises UserError if there is none, if it is damaged, or if others can read it."""
        _check_name(name)
        path = self._file(name, "key")
        if not path.exists():
            near = _nearest(name, self.names())
            raise UserError(f"key {name} is not in {self.path}{near}: make it with `shoal keys new {name}`")
        text = self._read(path, private=True).strip()
        if not PUBLIC.fullmatch(text):
            raise UserError(f"{path} holds no key: remove it and make another with `shoal keys new {name}`")
        return Pair.of_secret(text.lower())

    def public(self, text: str) -> str:
        """The public key that `text` is, or that the .pub of that name in this folder holds. Raises UserError."""
        path = self._file(text, "pub") if NAME.fullmatch(text) else None
        return public_of(_text(path).strip() if path and path.exists() else text)

    def names(self) -> list[str]:
        """Names of the owner's pairs, sorted."""
        return sorted(path.stem for path in self.path.glob("*.key") if NAME.fullmatch(path.stem))

    def secret(self, make: bool = True) -> bytes:
        """The 32 secret bytes with which this user's runs are signed (scripts/runs/signing.py), made at the first use if `make`
        is True. Raises UserError if there is none, if it is damaged, or if others can read it."""
        path = self.path / SECRET
        if make and not path.exists():
            with self._locked():
                if not path.exists():
                    self._write(path, secrets.token_hex(32))
        if not path.exists():
            raise UserError(f"{path} is not there: no run of this user was signed on this machine")
        text = self._read(path, private=True).strip()
        if not PUBLIC.fullmatch(text):
            raise UserError(f"{path} holds no secret: remove it, and the next run makes another")
        return bytes.fromhex(text)

    # The list of those let in

    def allowed(self) -> dict[str, str]:
        """The list of allowed keys: public key -> name. Raises UserError for a line that is not a key and a name."""
        if not self.allowed_path.exists():
            return {}
        found, bad = parse(self._read(self.allowed_path, private=False))
        if bad:
            raise UserError(f"{self.allowed_path}, line {bad[0]}, is not a public key and a name: correct or remove it")
        return found

    def allow(self, public: str, name: str = "") -> str:
        """Let a key in. Returns its name on the list. name: "" keeps the name that it has, or makes one. Raises UserError."""
        public = public_of(public)
        if name:
            _check_name(name)
        with self._locked():
            allowed = self.allowed()
            name = name or allowed.get(public) or self._own_name(public)
            if any(other == name for key, other in allowed.items() if key != public):
                raise UserError(f"name {name} is another key's: give another, or type `shoal keys revoke {name}` first")
            self._write_allowed({**allowed, public: name})
        return name

    def revoke(self, who: str) -> str:
        """Shut a key out. who: the key, or its name on the list. Returns the key. Raises UserError if it is not on the list."""
        with self._locked():
            allowed = self.allowed()
            public = next((key for key, name in allowed.items() if name == who), "") or self._listed(who, allowed)
            self._write_allowed({key: name for key, name in allowed.items() if key != public})
        return public

    def _listed(self, who: str, allowed: Mapping[str, str]) -> str:
        public = who if NAME.fullmatch(who) else public_of(who)
        if public not in allowed:
            raise UserError(f"{who} is not on the list in {self.allowed_path}{_nearest(who, allowed.values())}")
        return public

    def _own_name(self, public: str) -> str:
        for name in self.names():
            path = self._file(name, "pub")
            if path.exists() and _text(path).strip() == public:
                return name
        return f"key-{public[:8]}"

    def _write_allowed(self, allowed: Mapping[str, str]) -> None:
        self._write(self.allowed_path, "".join(f"{public} {name}\n" for public, name in allowed.items()))

    # Files

    def _file(self, name: str, kind: str) -> Path:
        return self.path / f"{name}.{kind}"

    def _read(self, path: Path, *, private: bool) -> str:
        """The text of a file. Raises UserError if other users can write it, or, with `private`, read it."""
        loose = path.stat().st_mode & (0o077 if private else 0o022)
        if loose:
            verb = "read" if private else "changed"
            raise UserError(f"{path} can be {verb} by others (mode {path.stat().st_mode & 0o777:o}): chmod 600 {path}")
        return _text(path)

    def _write(self, path: Path, text: str) -> None:
        """Replace a file, durably; after a crash the file is the new one or the one before, whole."""
        beside = path.with_name(f".{path.name}.tmp")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock: one process writes at a time. Raises UserError if the folder cannot be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as wrong:
            raise UserError(f"cannot use {self.path} ({wrong.strerror}): set SHOAL_KEYS to a folder of yours") from None
        try:
            if self.path.stat().st_mode & 0o077:
                mode = self.path.stat().st_mode & 0o777
                raise UserError(f"{self.path} is open to others (mode {mode:o}): chmod 700 {self.path}, or set SHOAL_KEYS")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"name {name[:80]!a}: a key's name is 1 to 32 letters, digits, . - or _, a letter or digit first")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (is it {near[0]}?)" if near else ""


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: remove it") from None
    except OSError as wrong:
        raise UserError(f"{path} cannot be read ({wrong.strerror}): give it mode 600, or remove it") from None


def parse(text: str) -> tuple[dict[str, str], list[int]]:
    """The keys and names in the text of a list, and the numbers of malformed lines (not empty, no comment, no key and name)."""
    found: dict[str, str] = {}
    bad: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        match line.split():
            case []:
                continue
            case [word, *_] if word.startswith("#"):
                continue
            case [public, name] if PUBLIC.fullmatch(public) and NAME.fullmatch(name):
                found[public.lower()] = name
            case _:
                bad.append(number)
    return found, bad


class Allowed:
    """The list of allowed keys as it is now: its file is looked at every READ_AGAIN seconds at most, and read if it changed. A
    file that cannot be read lets no key in. always: keys that are let in without being on the list (those of the coordinator's
    own actors)."""

    def __init__(self, path: Path, always: Mapping[str, str] | None = None) -> None:
        self.path, self._always = path, dict(always or {})
        self._mark: tuple[int, ...] | None = None
        self._looked_at = float("-inf")
        self._once: dict[str, str] = {}
        self.names: dict[str, str] = dict(self._always)

    def __contains__(self, public: object) -> bool:
        return public in self.names

    def name(self, public: str) -> str:
        """A key's name for a person: the name that it has or had on the list, else its first digits."""
        return self.names.get(public) or self._once.get(public) or f"key {public[:8]}"

    def refresh(self, now: float) -> set[str]:
        """Look at the file, if READ_AGAIN seconds are over. Returns the keys that were on the list and are not any more."""
        if now - self._looked_at < READ_AGAIN:
            return set()
        self._looked_at = now
        mark = self._marked()
        if mark == self._mark:
            return set()
        self._mark = mark
        before, self.names = self.names, {**self._listed(), **self._always}
        out = before.keys() - self.names.keys()
        self._once.update((public, before[public]) for public in out)
        return out

    def _marked(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode

    def _listed(self) -> dict[str, str]:
        """The keys on the list; none if its file cannot be read, or if other users could have written it."""
        if self._mark is None or self._mark[3] & 0o022:
            return {}
        try:
            return parse(self.path.read_text("ascii"))[0]
        except (OSError, UnicodeDecodeError):
            return {}
