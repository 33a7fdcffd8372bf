"""The state of environments as plain values, and back, so that episodes go on in another process.

The one idea: an environment whose attributes are numbers, text, arrays, random generators, and objects of these, is told whole
by them. What cannot be told so (a physics world of another library, say) is no guess: such environments have no state here,
unless they give one themselves by `save_state` and `load_state`, or keep a log of what was done to them (envs/logged.py). A
trial (envs/lasting.py) looks if the state is whole.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np

from shoal.protocol import values

SCRATCH = frozenset({"_env_obs", "_observations", "_rewards", "_terminations", "_truncations"})
"""Attributes of a SyncVectorEnv that its next step writes anew."""
LEAST, MOST = -(2**63), 2**63 - 1  # whole numbers that plain data holds
QUICK = frozenset({type(None), bool, float, str, bytes})
PLAIN = QUICK | {int}
CONSTANT = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
STILL = (
    "gymnasium.spaces",
    "gymnasium.envs.registration",
    "gymnasium.envs.mujoco.mujoco_rendering",
    "functools",
    "shoal.envs.spaces",
)
"""Packages whose objects are not changed by a step or a reset."""
BESIDE = frozenset({"env", "envs", "shoal_games", "env_fns", "spec", "metadata", "_metadata", "_cached_spec", "_saved_kwargs"})
"""Attributes that are not part of a state: what an environment is made of, and what it says about itself."""
NUMBERS = "?biufcSU"  # kinds of numpy's dtypes whose bytes are all that they are
MOST_PARTS = 1_000  # values in an environment: to tell more takes longer than steps that are worth it
FEW_PARTS = 64  # values in an attribute, where what cannot be told is left out: more are hardly needed from episode to episode
MOST_DEEP = 16  # objects and lists within each other
OWN = ("save_state", "load_state")


class NoStateError(Exception):
    """An environment's state cannot be told by plain values. The text says which attribute is at fault."""


class Watched:
    """An environment, or a VectorEnv and all environments in it, watched from its beginning on: its state is what has changed
    since. So a state is loaded into an environment that was made and reset with the same numbers.

    partly: values that cannot be told, or loaded, are left out."""

    def __init__(self, env: Any, partly: bool = False) -> None:
        self._layers = [_Layer(layer, partly) for layer in _layers(env)]

    def state(self) -> list[Any]:
        """The state as plain data (`values.pack_quickly`). Raises NoStateError."""
        return [layer.state() for layer in self._layers]

    def restore(self, state: Any) -> None:
        """Load a state that has come from `state`, by bytes. Raises NoStateError if it does not fit; the environment is then to
        be made anew."""
        if not isinstance(state, list) or len(state) != len(self._layers):
            raise NoStateError("the state is of other environments")
        for layer, saved in zip(self._layers, state, strict=True):
            layer.restore(saved)


class _Layer:
    """An environment, a wrapper or a vector, without those in it. kept: the attributes whose values cannot change in place, and
    need not be looked at while they are still the same objects. own: it tells its state itself. lost: paths of values that
    cannot be told, and are left out; None: such a value is a NoStateError."""

    def __init__(self, layer: Any, partly: bool = False) -> None:
        import gymnasium

        self.layer, self.whole = layer, _of_python(layer)
        self.lost: set[str] | None = set() if partly else None
        self.own = not partly and all(callable(getattr(type(layer), name, None)) for name in OWN)
        self.beside = BESIDE | SCRATCH if isinstance(layer, gymnasium.vector.SyncVectorEnv) else BESIDE
        if not isinstance(layer, gymnasium.Env | gymnasium.vector.VectorEnv):
            self.beside = BESIDE - {"env", "envs"}  # the wrapper of a game is told with the game, as one object
        of = vars(layer) if self.whole else {}
        self.kept = {name: value for name, value in of.items() if type(value) in PLAIN or name in self.beside or _still(value)}

    def state(self) -> Any:
        if self.own:
            return ["own", values.pack(self.layer.save_state(), f"{type(self.layer).__name__}.save_state()")]
        if not self.whole and self.lost is None:
            raise NoStateError(f"{type(self.layer).__name__} is more than its attributes")
        return _attributes(self.layer, _Walk(self.beside, self.lost), self.kept) if self.whole else {}

    def restore(self, saved: Any) -> None:
        if self.own and isinstance(saved, list) and len(saved) == len(OWN):
            self.layer.load_state(values.read(saved[1]))
        elif not self.own and isinstance(saved, dict):
            _assign(self.layer, saved, self.lost is not None)
        else:
            raise NoStateError(f"the state is not one of {type(self.layer).__name__}")


def _layers(env: Any) -> Iterator[Any]:
    """The environment, the environments that it is a wrapper of, and those, or the games, of a vector."""
    import gymnasium

    yield env
    if isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        yield from _layers(env.env)
    elif isinstance(env, gymnasium.vector.SyncVectorEnv):
        for each in env.envs:
            yield from _layers(each)
    elif isinstance(env, gymnasium.vector.VectorEnv):
        yield from getattr(env, "shoal_games", ())


def _of_python(value: Any) -> bool:
    """True if the attributes of an object are all that it has: its class and the classes before it are written in Python."""
    kinds = [vars(kind) for kind in type(value).__mro__[:-1]]
    roots = [vars(kind) for kind in type(value).__mro__[:-1] if kind.__base__ is object]
    whole = all("__slots__" in root or isinstance(root.get("__dict__"), GetSetDescriptorType) for root in roots)
    return whole and hasattr(value, "__dict__") and not any(kind.get("__slots__") for kind in kinds)


class _Walk:
    """One walk over an environment's attributes. beside, lost: see `_Layer`. seen: ids of objects that are told by now. held:
    ids of arrays and lists: two attributes that are one array would come back as two. parts: values that were looked at."""

    def __init__(self, beside: Collection[str] = BESIDE, lost: set[str] | None = None) -> None:
        self.beside, self.lost = beside, lost
        self.seen: set[int] = set()
        self.held: set[int] = set()
        self.parts = 0

    def hold(self, value: Any, path: str) -> None:
        if id(value) in self.held:
            raise NoStateError(f"{path} is held by two attributes")
        self.held.add(id(value))


def _attributes(layer: Any, walk: _Walk, kept: Mapping[str, Any], path: str = "", depth: int = 0) -> dict[str, Any]:
    """The attributes that are not what `kept` has."""
    walk.seen.add(id(layer))
    path = path or type(layer).__name__
    found = {}
    for name, value in vars(layer).items():
        if kept.get(name, walk) is value:
            continue
        kind = type(value)
        if kind in QUICK or (kind is int and LEAST <= value <= MOST):
            found[name] = value
        elif name not in walk.beside and not _still(value):
            where = f"{path}.{name}"
            if walk.lost is None:
                found[name] = _form(value, walk, where, depth)
            elif where not in walk.lost:
                parts = walk.parts
                try:
                    found[name] = _form(value, walk, where, depth)
                except NoStateError:
                    walk.lost.add(where)
                walk.parts = parts
    return found


def form(value: Any) -> Any:
    """A value as plain data (`values.pack_quickly`). Raises NoStateError."""
    return _form(value, _Walk(), type(value).__name__, 0)


def value(form: Any, here: Any) -> Any:
    """The value of a form that has come from `form`, by bytes. here: the value in this process. Raises NoStateError."""
    return _value(form, here, type(here).__name__)


def _still(value: Any) -> bool:
    """True for a value that no step or reset changes: a function, a class, a space."""
    kind = type(value)
    return isinstance(value, CONSTANT) or _module(kind).startswith(STILL) or kind.__name__ == "MjModel"


def _module(kind: type) -> str:
    return str(getattr(kind, "__module__", "?"))  # some classes of other languages have none


def _form(value: Any, walk: _Walk, path: str, depth: int) -> Any:
    """The value as plain data: itself, or a tuple that begins with its kind."""
    walk.parts += 1
    if walk.lost is not None and walk.parts > FEW_PARTS:
        raise NoStateError(f"{path} has more than {FEW_PARTS} parts")
    if type(value) in QUICK:
        return value
    if type(value) is int:
        whole = LEAST <= value <= MOST
        return value if whole else ("int", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, np.generic) and value.dtype.kind in NUMBERS:
        return ("scalar", value.dtype.str, value.tobytes())
    if depth > MOST_DEEP or walk.parts > MOST_PARTS:
        raise NoStateError(f"{path} lies too deep" if depth > MOST_DEEP else f"{path} has more than {MOST_PARTS} parts")
    match value:
        case Enum():
            return ("enum", value.name)
        case np.ndarray() if type(value) is np.ndarray and value.dtype.kind in NUMBERS:
            walk.hold(value, path)
            turned = value.flags.f_contiguous and not value.flags.c_contiguous  # products of it may have other last bits
            return ("array", value.dtype.str, value.shape, (value.T if turned else value).tobytes(), turned)
        case tuple() if type(value) is tuple:
            return ("tuple", [_form(each, walk, f"{path}[]", depth + 1) for each in value])
        case list() | deque() if type(value) in (list, deque):
            walk.hold(value, path)
            most = getattr(value, "maxlen", None)
            return (type(value).__name__, [_form(each, walk, f"{path}[]", depth + 1) for each in value], most)
        case dict() if type(value) is dict and all(type(key) in (str, int) for key in value):
            walk.hold(value, path)
            return ("dict", [(key, _form(each, walk, f"{path}[]", depth + 1)) for key, each in value.items()])
        case np.random.Generator():
            walk.hold(value, path)
            told = value.bit_generator.state
            if told["bit_generator"] == "PCG64":  # what gymnasium's environments have
                pair = told["state"]["state"].to_bytes(16, "little") + told["state"]["inc"].to_bytes(16, "little")
                return ("pcg64", pair, told["has_uint32"], told["uinteger"])
            return ("generator", _form(told, _Walk(), "state", 0))
        case np.random.RandomState():
            walk.hold(value, path)
            return ("legacy", _form(value.get_state(legacy=False), _Walk(), "state", 0))
        case random.Random():
            walk.hold(value, path)
            return ("random", _form(value.getstate(), _Walk(), "state", 0))
    if type(value).__name__ == "MjData" and _module(type(value)).startswith("mujoco"):
        return ("mujoco", {name: (array.shape, array.tobytes()) for name, array in _physics(value)}, float(value.time))
    if not _of_python(value):
        raise NoStateError(f"{path} is {_module(type(value))}.{type(value).__qualname__}")
    if id(value) in walk.seen:
        return ("again",)
    if "[" in path:
        raise NoStateError(f"{path} holds objects")
    return ("object", type(value).__qualname__, _attributes(value, walk, {}, path=path, depth=depth + 1))


def _physics(data: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of MuJoCo's data."""
    for name in dir(data):
        if not name.startswith(("_", "contact", "efc_", "iefc_", "arena")):
            value = getattr(data, name)
            if isinstance(value, np.ndarray) and value.size and value.dtype.kind in NUMBERS and value.flags.writeable:
                yield name, value


def _assign(layer: Any, saved: Mapping[str, Any], partly: bool = False) -> None:
    own = vars(layer)
    for name, form in saved.items():
        try:
            own[name] = _value(form, own.get(name), name, partly)
        except NoStateError:
            if not partly:
                raise


def _value(form: Any, here: Any, name: str, partly: bool = False) -> Any:
    """The value of a form. here: the value in this environment, which an object and a generator are loaded into. partly: an
    object's attributes that do not fit are left as they are."""
    if type(form) is not list:
        return form
    match form:
        case ("int", raw):
            return int.from_bytes(raw, "little", signed=True)
        case ("array", dtype, shape, raw, turned):
            flat = np.frombuffer(raw, dtype).copy()
            return flat.reshape(shape[::-1]).T if turned else flat.reshape(shape)
        case ("scalar", dtype, raw):
            return np.frombuffer(raw, dtype)[0]
        case ("tuple", parts):
            return tuple(_value(part, None, name) for part in parts)
        case ("list", parts, _):
            return [_value(part, None, name) for part in parts]
        case ("deque", parts, most):
            return deque((_value(part, None, name) for part in parts), most)
        case ("dict", rows):
            return {key: _value(part, None, name) for key, part in rows}
        case ("enum", member) if isinstance(here, Enum):
            return type(here)[member]
        case ("pcg64", raw, has, drawn):
            pair = {"state": int.from_bytes(raw[:16], "little"), "inc": int.from_bytes(raw[16:], "little")}
            rest = {"has_uint32": has, "uinteger": drawn}
            return _drawing({"bit_generator": "PCG64", "state": pair, **rest}, here, name)
        case ("generator", state):
            return _drawing(_value(state, None, name), here, name)
        case ("legacy", state):
            legacy = here if isinstance(here, np.random.RandomState) else np.random.RandomState(0)
            legacy.set_state(_value(state, None, name))
            return legacy
        case ("random", state):
            plain = here if isinstance(here, random.Random) else random.Random(0)
            plain.setstate(_value(state, None, name))
            return plain
        case ("again",):
            return here
        case ("object", kind, saved) if here is not None and type(here).__qualname__ == kind:
            _assign(here, saved, partly)
            return here
        case ("mujoco", arrays, seconds) if type(here).__name__ == "MjData":
            _set_physics(here, arrays, seconds)
            return here
    raise NoStateError(f"{name} has another form here")


def _drawing(state: Any, here: Any, name: str) -> np.random.Generator:
    """The generator `here`, or a new one, with a state."""
    made = here if isinstance(here, np.random.Generator) else np.random.default_rng(0)
    if made.bit_generator.state["bit_generator"] != state["bit_generator"]:
        raise NoStateError(f"{name} is another random generator")
    made.bit_generator.state = state
    return made


def _set_physics(data: Any, arrays: Mapping[str, Any], seconds: float) -> None:
    fits = {name: here for name, here in _physics(data) if name in arrays and tuple(arrays[name][0]) == here.shape}
    if not {"qpos", "qvel"} <= fits.keys():
        raise NoStateError("MuJoCo's model is another one here")
    for name, here in fits.items():  # others are as long as there are contacts, and are computed anew in each step
        here[...] = np.frombuffer(arrays[name][1], here.dtype).reshape(here.shape)
    data.time = seconds
