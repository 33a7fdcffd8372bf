"""Settings: fields of frozen dataclasses that carry their range and their meaning.

The one idea: one description of a setting serves the constructor, `key=value` on the command line, config.toml, the error
for a wrong value, and `shoal jobs`. This module needs only the standard library, so that an edge actor can import it.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from shoal.protocol.errors import UserError, signed

S = TypeVar("S")

NEAR = 0.65  # share of the letters of two names that must agree, in difflib's measure, for one to be offered for the other
ALSO: Mapping[str, str] = {
    "lr": "learning_rate client_lr eta step_size policy_lr q_lr actor_lr critic_lr",
    "server_lr": "server_learning_rate global_lr",
    "rounds": "global_rounds communication_rounds server_rounds",
    "local_epochs": "epochs",
    "local_steps": "steps iterations",
    "total_timesteps": "timesteps steps max_steps total_steps num_env_steps_sampled_lifetime",
    "update_epochs": "epochs n_epochs num_epochs num_sgd_iter",
    "clients": "users nodes parties total_clients",
    "cohort": "clients_per_round participants cohort_size fraction_fit",
    "batch_size": "batch minibatch_size",
    "weight_decay": "wd l2",
    "clip_grad_norm": "clip_norm max_norm grad_clip max_grad_norm",
    "max_grad_norm": "clip_norm max_norm grad_clip clip_grad_norm",
    "num_minibatches": "minibatch_size sgd_minibatch_size mini_batch_size",
    "clip_coef": "clip_range clip_param clip_epsilon",
    "clip_range_vf": "vf_clip_param clip_vloss",
    "target_kl": "kl_target",
    "norm_adv": "normalize_advantage",
    "norm_obs": "observation_filter",
    "hidden": "net_arch fcnet_hiddens",
    "activation": "activation_fn fcnet_activation",
    "memory": "use_lstm",
    "memory_size": "lstm_cell_size lstm_hidden_size",
    "replay_ratio": "gradient_steps train_freq train_frequency training_intensity utd_ratio",
    "buffer_size": "replay_size replay_capacity capacity",
    "learning_starts": "num_steps_sampled_before_learning_starts start_timesteps warmup_steps",
    "target_update_interval": "target_network_frequency target_network_update_freq target_update_freq",
    "exploration_initial_eps": "start_e initial_epsilon",
    "exploration_final_eps": "end_e final_epsilon",
    "policy_noise": "target_policy_noise target_noise",
    "noise_clip": "target_noise_clip",
    "exploration_noise": "action_noise",
    "policy_delay": "policy_frequency policy_freq",
    "clip_rho": "vtrace_clip_rho_threshold",
    "vtrace_alpha": "leaky_alpha alpha_leak",
    "retrace_lambda": "retrace_lam",
    "burn_in": "replay_burn_in",
    "server_momentum": "beta",
    "mu": "proximal_mu",
    "alpha_coef": "feddyn_alpha dyn_alpha",
    "lam": "lambda ditto_lambda lamda",
    "personal": "personal_layers head local_layers",
    "own_held_out": "local_test_size local_held_out",
    "alpha": "dirichlet_alpha",
    "gamma": "discount",
    "gae_lambda": "lambda lambda_ gae_lam",
    "ent_coef": "entropy_coef entropy_coeff",
    "vf_coef": "value_coef vf_loss_coeff",
    "num_envs": "environments n_envs num_envs_per_env_runner num_envs_per_worker",
    "rollout_length": "num_steps n_steps horizon rollout_fragment_length",
    "initial_weights": "pretrained checkpoint",
    "data": "dataset data_dir folder",
    "method": "strategy",
}
"""Settings -> the names that other programs have for them."""


class Arguments(Mapping[str, Any]):
    """Keyword arguments as a setting: name -> plain data. It cannot be changed; its text is JSON."""

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._text = json.dumps(dict(given or {}), sort_keys=True, allow_nan=False)

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._text)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__


NO_ARGUMENTS = Arguments()


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a setting may have: numbers from `least` to `most`, both included; above `above`; below `below`; or one
    of `choices`. also: numbers outside of these bounds that have a meaning of their own. about: the meaning, in one line.
    default: the value of a setting that nobody gave.

    own: a user's function or object may take the place of a name from `choices`. read: a function that makes a function of a
    user's object that is none (and gives back any other object); None: none. of: name -> values: the setting has an effect
    only if another setting, `name`, has one of `values`; with several names, one of them is enough.
    """

    about: str
    default: Any = None
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    also: tuple[float, ...] = ()
    own: bool = False
    read: Callable[[Any], Any] | None = None
    of: Mapping[str, tuple[str, ...]] | None = None

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = {"from": self.least, "above": self.above, "to": self.most, "below": self.below}
        within = " ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)) or "any"
        return within + "".join(f", or {one:g}" for one in self.also)

    def holds(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        within = math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below
        return within or value in self.also


def option(default: Any, about: str, **bounds: Any) -> Any:
    """A field of a dataclass that is a setting, made from its default, its meaning `about`, and its range (see Range)."""
    return field(default=default, metadata={"range": Range(about, default, **bounds)})


def ranges(settings: Any) -> dict[str, Range]:
    """Name -> range of each setting of a dataclass or of its type. A setting is a field made by `option`, or a field whose
    default is a plain value (a number, a text, true or false, a tuple). A plain field that a base class made by `option` is
    that setting with another default; any other plain field may have any value of its type."""
    kinds = (settings if isinstance(settings, type) else type(settings)).__mro__
    return {
        each.name: _inherited(each.name, each.default, kinds)
        for each in fields(settings)
        if "range" in each.metadata or type(each.default) in (bool, int, float, str, tuple)
    }


def _inherited(name: str, default: Any, kinds: Iterable[type[Any]]) -> Range:
    """The range of the first class that describes the setting, with this default."""
    known = (vars(kind).get("__dataclass_fields__", {}).get(name) for kind in kinds)
    described = next((each.metadata["range"] for each in known if each and "range" in each.metadata), None)
    return replace(described or Range("a setting of your own method or wrap"), default=default)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error's line: the known name that the user probably meant, or all known names."""
    names = list(known)
    words = (low := name.lower().replace("-", "_"), low.removeprefix("num_").removeprefix("n_"))  # the whole name first
    meant = [other for word in words for other in names if word in (other, *ALSO.get(other, "").split())]
    close = meant[:1] or difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
    return f"did you mean {close[0]}?" if close else "known are " + ", ".join(names)


def among(name: str, given: Any, choices: Iterable[str]) -> str:
    """The error's line for a value that is none of the choices: all choices, and the choice that was probably meant."""
    names = list(choices)
    close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=NEAR)
    say = f"did you mean {close[0]}?" if close else f"{name}={names[0]}, say"
    return f"{name}={shown(given)}: allowed is one of {', '.join(names)}; {say}"


def changed(settings: S, changes: Mapping[str, Any]) -> S:
    """Return the same settings with changes, whose values may be strings. Raises UserError naming setting, value and range."""
    found = ranges(settings)
    new = {name: coerced(name, given, found[name]) for name, given in changes.items()}
    return replace(settings, **new) if new else settings  # type: ignore[type-var]


def checked(settings: Any) -> None:
    """Raises UserError if a setting has a value outside its range, naming setting, value and range. Converts a value of a
    similar type to the type of the default."""
    for name, allowed in ranges(settings).items():
        value = getattr(settings, name)
        found = coerced(name, value, allowed)
        if type(found) is not type(value) or found != value:  # a list for a tuple, a whole number for a number
            object.__setattr__(settings, name, found)


def check_used(settings: Any) -> None:
    """Raises UserError if a setting that has not its default has no effect beside the other settings."""
    for name, allowed in ranges(settings).items():
        value = getattr(settings, name)
        if allowed.of is None or value == allowed.default:
            continue
        stands = {other: getattr(settings, other) for other in allowed.of if hasattr(settings, other)}
        if not has_effect(allowed, stands):
            of = " or ".join(f"{other}={' or '.join(allowed.of[other])}" for other in stands)
            has = " and ".join(f"{other}={shown(found)}" for other, found in stands.items())
            raise UserError(f"{name}={shown(value)}: {name} is a setting of {of}; this job has {has}")


def has_effect(allowed: Range, stands: Mapping[str, Any]) -> bool:
    """True if a setting has an effect beside the settings `stands`: one that it belongs to has a value that wants it."""
    of = allowed.of
    return of is None or any(callable(found) or shown(found) in of[other] for other, found in stands.items() if other in of)


def coerced(name: str, given: Any, allowed: Range) -> Any:
    """The value `given` in the type of the default. Raises UserError if that is impossible or the value is out of range."""
    if allowed.own and not isinstance(given, str):
        given = given if allowed.read is None else allowed.read(given)
        if callable(given):
            return given
        raise UserError(f"{name}={signed(given)}: must be a function of yours, or {allowed}")
    kind, say = type(allowed.default), f"{name}={shown(allowed.default)}, say"
    try:
        value = _as(kind, given)
    except (ValueError, TypeError, OverflowError):
        words = {int: "a whole number", float: "a number", bool: "true or false", tuple: "whole numbers like 64,64"}
        words[Arguments] = "a dict of plain data (numbers, texts, true, false, lists); anything else needs a function as env"
        say = f'{name}={{"continuous": true}}, say' if kind is Arguments else say
        must = ", ".join([words.get(kind, "text")] + [str(allowed)] * (str(allowed) != "any"))
        raise UserError(f"{name}={shown(given)}: must be {must}" + f"; {say}" * (allowed.default != "")) from None
    if kind is int and abs(value) >= 2**63:  # a message holds no larger one
        raise UserError(f"{name}={shown(given)}: must be a whole number below 2**63; {say}")
    if allowed.choices and value not in allowed.choices:
        raise UserError(among(name, given, allowed.choices))
    if not allowed.holds(value):
        raise UserError(f"{name}={shown(given)}: allowed is {allowed}; {say}")
    return value


def whole_seed(given: Any) -> int:
    """A seed as a plain number. Raises UserError unless it is a whole number from 0 to below 2**63, which draws are made of."""
    try:
        seed = -1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={signed(given)}: must be a whole number from 0 to below 2**63")
    return seed


def _as(kind: type, given: Any) -> Any:
    if kind is Arguments:
        return Arguments(json.loads(given) if isinstance(given, str) else dict(given))
    if kind is bool:
        return _truth(given)
    if kind is int:
        number = float(str(given).replace("_", ""))
        if not number.is_integer() or isinstance(given, bool):
            raise ValueError
        return int(str(given)) if str(given).lstrip("-").isdigit() else int(number)
    if kind is float:
        if isinstance(given, bool):
            raise ValueError
        return float(given)
    if kind is tuple:
        parts = (
            given.replace(",", " ").split() if isinstance(given, str) else [given] if isinstance(given, int | float) else given
        )
        return tuple(_as(int, part) for part in parts)
    if not isinstance(given, str | os.PathLike):
        raise ValueError
    return os.fspath(given)


def argument(text: str) -> Any:
    """A keyword argument as it is typed: a number, true, false, null, JSON in brackets, or else a text."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def _truth(given: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if str(given).lower() not in words:
        raise ValueError
    return words[str(given).lower()]


def shown(value: Any) -> str:
    """A value as a user types it; a user's own function by its name."""
    if isinstance(value, bool):
        return str(value).lower()
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def values(settings: Any) -> dict[str, Any]:
    """Name -> value of each setting."""
    return {name: getattr(settings, name) for name in ranges(settings)}


def plain(settings: Any) -> dict[str, Any]:
    """Settings as plain data, for config.toml and for actors elsewhere. A user's own functions are left out: they stand in the
    job's file."""
    named = {name: value for name, value in values(settings).items() if not callable(value)}
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Arguments) else value
        for name, value in named.items()
    }


def described(settings: Any) -> list[tuple[str, str, str]]:
    """Return a row for each setting: `name=value` as a user types it, the allowed values, the meaning."""
    known = ranges(settings)
    return [(f"{name}={shown(value)}", str(known[name]), known[name].about) for name, value in values(settings).items()]


def pairs(words: Iterable[str]) -> dict[str, str]:
    """Name -> value, from the words key=value of the command line. Raises UserError."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise UserError(f"{word!r} is not of the form key=value; lr=0.1, say")
        found[name] = value
    return found
