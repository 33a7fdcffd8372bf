"""Wraps: what stands around a job's aggregator, and around its workers where both ends must agree.

The one idea: wraps form a chain, innermost first. Each says whether it looks at contributions and whether they reach it packed,
so an order that cannot work is refused when the job is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.jobs.settings import default_of, option, ranges, unused
from shoal.protocol.compress import CODECS, Codec, Coding, Packed, codec_of
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from shoal.actors import Worker
    from shoal.aggregators import Aggregator
    from shoal.jobs.methods.method import Start


@dataclass(frozen=True)
class Wrap:
    """A link of the chain. A subclass overrides what it changes; one that changes nothing hands on what it got."""

    @property
    def looks(self) -> bool:
        """True if it looks at the arrays of contributions, so that nothing inside of it may want them packed."""
        return True

    @property
    def packs(self) -> bool:
        """True if contributions reach it packed, in fewer bytes, and it unpacks them for the inner aggregator."""
        return False

    def check(self, exact: bool) -> None:
        """Raises UserError, one line, for settings that do not go together. exact: the method's sums are."""
        for name in ranges(self):
            if why := unused(self, name):
                raise UserError(why)

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        return inner

    def worker(self, inner: Worker, seed: int) -> Worker:
        return inner

    def layouts(self, inner: Sequence[Layout]) -> Sequence[Layout]:
        """The layouts of contributions as they arrive, from those that the inner aggregator gets."""
        return inner


@dataclass(frozen=True)
class Calling(Wrap):
    """A user's own function, aggregator -> aggregator, as a link of the chain."""

    function: Callable[[Aggregator], Aggregator] = lambda inner: inner

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        return self.function(inner)


@dataclass(frozen=True)
class Bound(Wrap):
    """Refuses deltas that are far longer than is usual (aggregators/around/bounded.py)."""

    norm_factor: float = option(0.0, "largest L2 norm of a delta, as a multiple of the median of recent ones (0: any)", least=0)

    @property
    def looks(self) -> bool:
        return self.norm_factor > 0

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if not self.norm_factor:
            return inner
        from shoal.aggregators.around.bounded import Bounded

        return Bounded(inner, self.norm_factor)


@dataclass(frozen=True)
class CompressWeights(Wrap):
    """Tells weights to actors as what changed, in fewer bytes (aggregators/around/told.py)."""

    compress_weights: str = option("none", "codec by which actors are told what changed in weights", choices=("none", *CODECS))
    compress_ratio: float = option(0.1, "share of the entries that the codecs topk and randk send", above=0, most=1)
    compress_block: int = option(256, "entries that share one scale in the codecs int8 and int4", least=1)

    def check(self, exact: bool) -> None:
        super().check(exact)
        used = {self.compress_weights, getattr(self, "compress", "none")}
        for name, codecs in {"compress_ratio": ("topk", "randk"), "compress_block": ("int8", "int4")}.items():
            value = getattr(self, name)
            if value != default_of(self, name) and not used.intersection(codecs):
                raise UserError(f"{name}={value}: it is a setting of the codecs {' and '.join(codecs)}; none of them is used")

    @property
    def looks(self) -> bool:
        return False

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        if self.compress_weights == "none":
            return inner
        from shoal.aggregators.around.told import Told

        coding = Coding(self.compress_weights, self.compress_ratio, self.compress_block)
        return Told(inner, coding, seed=start.seed)


@dataclass(frozen=True)
class Compress(CompressWeights):
    """The same, and clients' deltas in fewer bytes too (aggregators/around/compressed.py)."""

    compress: str = option("none", "codec by which clients' deltas are sent", choices=("none", *CODECS))
    compress_feedback: bool = option(
        False, "what compression leaves out of a client's delta is sent with a later one (error feedback)"
    )

    @property
    def packs(self) -> bool:
        return self.compress != "none"

    @property
    def looks(self) -> bool:
        return self.packs

    def check(self, exact: bool) -> None:
        super().check(exact)
        if self.compress_feedback and self.compress == "none":
            raise UserError("compress_feedback=true: nothing is compressed; compress=topk, say")
        if self.compress_feedback and exact:
            raise UserError("compress_feedback=true: what was left out stays with its actor; it needs deterministic=false")

    def codec(self) -> Codec | None:
        """How deltas are sent; None as they are."""
        if self.compress == "none":
            return None
        return codec_of(self.compress, share=self.compress_ratio, block=self.compress_block, feedback=self.compress_feedback)

    def aggregator(self, inner: Aggregator, start: Start) -> Aggregator:
        from shoal.aggregators.around.compressed import Decompressed

        if codec := self.codec():
            inner = Decompressed(inner, codec, norm=start.norm_bound)
        return super().aggregator(inner, start)

    def worker(self, inner: Worker, seed: int) -> Worker:
        if (codec := self.codec()) is None:
            return inner
        from shoal.actors.workers.compressed import Compressed

        return Compressed(inner, codec, self.compress_feedback, seed=seed)

    def layouts(self, inner: Sequence[Layout]) -> Sequence[Layout]:
        codec = self.codec()
        return inner if codec is None else [Packed(codec, layout).layout for layout in inner]


def chain(around: Sequence[Any]) -> tuple[Wrap, ...]:
    """Links and users' functions as links, in an order that works. Raises UserError for one that does not."""
    links: list[Wrap] = []
    for each in around:
        if not (isinstance(each, Wrap) or callable(each)):
            raise UserError(f"around: {each!r} is neither a Wrap nor a function from an aggregator to an aggregator")
        links.append(each if isinstance(each, Wrap) else Calling(function=each))
    packed: Wrap | None = None
    for link in links:
        if link.looks and packed is not None:
            raise UserError(
                f"around: {_named(link)} stands outside {_named(packed)}, where contributions are packed; "
                f"put {_named(link)} before {_named(packed)}"
            )
        packed = link if link.packs else packed
    return tuple(links)


def _named(link: Wrap) -> str:
    return getattr(link.function, "__name__", "a function") if isinstance(link, Calling) else type(link).__name__
