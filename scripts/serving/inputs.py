"""The inputs of a request: JSON or an array, checked before any model sees them.

The one idea: a request that is wrong is refused in one line that names the field, the value found and the fix, and no other
request of its batch notices.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FORM = 'send {"inputs": [[...], ...]}, one entry for each row'


class WrongRequestError(Exception):
    """A request that cannot be answered. status: of HTTP, 400 or 413. The text is one line for its sender."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a model. shape: of one row; None: not known. dtype: numpy's name. most: rows of a request, at most."""

    shape: tuple[int, ...] | None
    dtype: str
    most: int

    def checked(self, found: Array) -> Array:
        """The rows, [n, *shape], in the model's dtype. Raises WrongRequestError."""
        wanted = "any shape" if self.shape is None else listed(("rows", *self.shape))
        if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
            raise WrongRequestError(400, f"inputs: dtype {found.dtype}: expected {self.dtype}")
        if found.ndim < 1 or (self.shape is not None and found.shape[1:] != self.shape):
            one = "; put a single row into a list" if found.shape == self.shape else ""
            raise WrongRequestError(400, f"inputs: shape {listed(found.shape)}: expected {wanted}{one}")
        if not len(found):
            raise WrongRequestError(400, f"inputs: no rows: expected {wanted}, with one row or more")
        if len(found) > self.most:
            raise WrongRequestError(
                413, f"inputs: {len(found):,} rows: at most {self.most:,} go in a request; send several, or raise --max-batch"
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            at = tuple(int(each) for each in np.argwhere(~np.isfinite(found))[0])
            raise WrongRequestError(
                400, f"inputs{''.join(f'[{each}]' for each in at)}: {found[at]}: every number must be finite"
            )
        return found if found.dtype == self.dtype else self._cast(found)

    def _cast(self, found: Array) -> Array:
        """The rows in the model's dtype. A float dtype takes any number that it can hold; a whole-number dtype takes numbers
        that stay the same."""
        with np.errstate(over="ignore", invalid="ignore"):
            cast = found.astype(self.dtype)
        odd = ~np.isfinite(cast) if cast.dtype.kind == "f" else cast != found
        if odd.any():
            at = tuple(int(each) for each in np.argwhere(odd)[0])
            where = "".join(f"[{each}]" for each in at)
            raise WrongRequestError(400, f"inputs{where}: {found[at]} is no {self.dtype}: the model takes {self.dtype}")
        return cast


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read. deadline: seconds from its arrival; inf: none of its own."""

    rows: Array
    deadline: float = math.inf


def listed(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _no_number(text: str) -> NoReturn:
    raise WrongRequestError(400, f"body: {text} is no JSON number: every number must be finite")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
FIELDS = ("inputs", "deadline")


def object_in(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body. Raises WrongRequestError.

    orjson reads a row of 784 numbers in a tenth of the time of the standard library, which was most of what a small request
    costs. What orjson refuses is read once more by the standard library, whose words say what is wrong.
    """
    import orjson

    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = _slowly(body)
    if not isinstance(found, dict):
        raise WrongRequestError(400, f"body: a JSON {_kind(found)}, not an object: {FORM}")
    return found


def _slowly(body: bytes) -> Any:
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError as wrong:
        raise WrongRequestError(400, f"body: not UTF-8 (byte {wrong.start}): send JSON as UTF-8") from None
    except json.JSONDecodeError as wrong:
        raise WrongRequestError(400, f"body: not JSON ({wrong.msg}, character {wrong.pos}): {FORM}") from None
    except ValueError:
        raise WrongRequestError(400, "body: a whole number is too long: every number must fit 64 bits") from None
    except RecursionError:
        raise WrongRequestError(400, f"body: lists in lists too deep: {FORM}") from None


def check_fields(found: Mapping[str, Any], known: tuple[str, ...], needed: str) -> None:
    """Raises WrongRequestError for a field that is not known, or if `needed` is missing."""
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise WrongRequestError(400, f"{name[:40]!r}: no such field; {meant}")
    if needed not in found:
        raise WrongRequestError(400, f"{needed!r} is missing: the body has {', '.join(map(repr, found)) or 'no field'}")


def from_json(body: bytes, inputs: Inputs) -> Asked:
    """The request in a body of JSON. Raises WrongRequestError."""
    found = object_in(body)
    if "inputs" not in found or len(found) > 1:
        check_fields(found, FIELDS, "inputs")
    told = found["inputs"]
    if not isinstance(told, list):
        raise WrongRequestError(400, f"inputs: a JSON {_kind(told)}, not a list: {FORM}")
    try:
        # A text among the rows: numpy would take memory for its length in the place of every number.
        if body.count(b'"') > 2 * len(found) and (odd := _odd(told)):
            raise WrongRequestError(400, f"inputs: {odd}: expected numbers")
        rows = np.array(told)
    except RecursionError:
        raise WrongRequestError(400, f"inputs: lists in lists too deep: {FORM}") from None
    except ValueError:
        raise WrongRequestError(400, "inputs: the rows have different lengths: all rows must have one shape") from None
    except OverflowError:
        raise WrongRequestError(400, "inputs: a whole number is too large: every number must fit 64 bits") from None
    if rows.dtype.kind not in "fiu" and rows.size:
        raise WrongRequestError(400, f"inputs: {_odd(told) or 'a whole number is beyond 64 bits'}: expected numbers")
    return Asked(inputs.checked(rows), deadline_in(found.get("deadline")))


def deadline_in(found: Any) -> float:
    """The deadline of a request; None: none of its own. Raises WrongRequestError."""
    if found is None:
        return math.inf
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= sys.float_info.max:
        raise WrongRequestError(400, f"deadline: {str(found)[:40]}: expected seconds above 0, such as 0.05")
    return float(found)


def _kind(found: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(found), "null")


def _odd(told: Any, path: str = "") -> str:
    """The first entry of nested lists that is no number, in words; "" if there is none."""
    if isinstance(told, list):
        for at, each in enumerate(told):
            if isinstance(each, list):
                if inner := _odd(each, f"{path}[{at}]"):
                    return inner
            elif isinstance(each, bool) or not isinstance(each, int | float):
                return f"{path}[{at}] is a {_kind(each)}"
    return ""
