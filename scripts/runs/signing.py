"""The signature of a run's folder: which folders this user's own runs made.

The one idea: a folder may come from anybody, and its config.toml names code that `shoal resume` would import. A run's folder
therefore carries an HMAC of the name of its job, with a secret that only its user can read: whoever has not the secret cannot
name other code.
"""

from __future__ import annotations

import hashlib
import hmac

from shoal.jobs.catalog import names_code
from shoal.protocol.errors import UserError
from shoal.protocol.keys import KeyFolder
from shoal.runs.rundir import RunDir

LENGTH = 64  # hexadecimal digits of an HMAC


def sign(run: RunDir, job: str) -> None:
    """Write the signature of a new run whose job is named `job`. Nothing is written for a job that names no code, nor if the
    folder of keys cannot be used: the folder is then a stranger's to `unsigned`."""
    if not names_code(job):
        return
    try:
        run.signature_file.write_text(_signature(KeyFolder().secret(), job) + "\n")
    except (UserError, OSError, RuntimeError):  # RuntimeError: this user has no home
        return


def unsigned(run: RunDir, job: str) -> str:
    """Return why the code that a run's config.toml names is not known to be this user's choice; "" if it is, or names no
    code."""
    if not names_code(job):
        return ""
    try:
        with run.signature_file.open(encoding="ascii") as file:
            found = file.read(LENGTH)
        if hmac.compare_digest(found, _signature(KeyFolder().secret(make=False), job)):
            return ""
    except FileNotFoundError:
        return "it has no signature, as of an earlier version of Shoal"
    except (UserError, OSError, RuntimeError, UnicodeDecodeError, TypeError) as wrong:
        return f"its signature cannot be checked: {wrong}"
    return "its signature is another user's or machine's, or of another job"


def _signature(secret: bytes, job: str) -> str:
    return hmac.new(secret, f"shoal run of {job}".encode(), hashlib.sha256).hexdigest()
