"""Orders, sources and the stacking of examples, without a process."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shoal.protocol.draws import key
from shoal.protocol.errors import UserError
from shoal.tasks.loader import Loader
from shoal.tasks.preparing import stacked
from shoal.tasks.sources import order, stream

Point = namedtuple("Point", "x y")


def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    orders = [tuple(order(50, True, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert orders[2] == tuple(order(50, True, 1, 0).tolist())
    assert order(50, False, 1, 0).tolist() == list(range(50))


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 6, 11, 12])
def test_a_stream_goes_on_where_it_was_left(skip: int) -> None:
    shards = [np.arange(5), [10, 11, 12], np.arange(20, 24)]
    whole = list(stream(shards, True, 7, 3, 0))
    assert list(stream(shards, True, 7, 3, skip)) == whole[skip:]
    assert sorted(int(example) for _, example in whole) == [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23]
    assert [number // 5 for number, _ in whole[:5]] == [0] * 5  # a shard stays together


def test_shards_that_are_skipped_are_not_read() -> None:
    class Shard(list[int]):
        def __getitem__(self, place: Any) -> Any:
            raise AssertionError("read")

    assert [its for _, its in stream([Shard([1, 2]), [5, 6]], False, 0, 0, 2)] == [5, 6]


def test_examples_are_stacked_by_what_they_are() -> None:
    row = {"a": np.ones(3, "f4"), "n": 2, "t": (1.5, True), "s": "word", "p": Point(np.int8(1), [3])}
    found = stacked([row, row], [0, 1])
    assert (found["a"].shape, found["a"].dtype) == ((2, 3), "f4")
    assert (found["n"].tolist(), found["n"].dtype) == ([2, 2], "i8")
    assert (found["t"][0].dtype, found["t"][1].dtype, found["s"]) == ("f8", "?", ["word", "word"])
    assert (type(found["p"]), found["p"].x.dtype, found["p"].y[0].tolist()) == (Point, "i1", [3, 3])
    tensors = stacked([torch.ones(2, requires_grad=True), torch.zeros(2)], [0, 1])
    assert torch.from_numpy(tensors).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([np.zeros((3, 4)), np.zeros((3, 5))], r"examples 7 and 9 cannot be stacked: shapes \(3, 4\) and \(3, 5\)"),
        ([{"x": np.zeros(1)}, {"x": np.zeros(2)}], r"cannot be stacked\['x'\]: shapes \(1,\) and \(2,\)"),
        ([(1, 2), (1,)], "lengths 2 and 1"),
        ([{"x": 1}, {"y": 1}], r"keys \['x'\] and \['y'\]"),
        ([1, None], "example 9 is None, which is no number"),
        ([1, object()], "example 9 is an object of type object"),
        ([(1, {2}), (1, {2})], r"example 7\[1\] is an object of type set"),
        ([torch.zeros(1, dtype=torch.bfloat16)] * 2, "example 7 is a tensor that numpy has no array for"),
    ],
)
def test_examples_that_cannot_be_stacked_are_named(parts: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        stacked(parts, [7, 9])
    assert "\n" not in str(caught.value)


def test_what_a_loader_cannot_take_is_one_line() -> None:
    rows = np.zeros((4, 2))
    for given, words in [
        ({"batch_size": 0}, "batch_size=0: must be a whole number from 1"),
        ({"epochs": 0}, "epochs=0"),
        ({"actors": -1}, "actors=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"seed": "a"}, "seed='a'"),
        ({"collate": 3}, "collate is 3: expected a function"),
        ({"transform": lambda a, b, c: a}, "transform is <lambda>(a, b, c): expected transform(example) or"),
        ({"transform": lambda: 1}, "transform is <lambda>(): expected"),
        ({"batch_size": True}, "batch_size=True"),
        ({"start": {"epoch": 1}}, "state {'epoch': 1}: expected"),
        ({"start": {"epoch": 0, "batch": 5}, "batch_size": 1}, "batch=5: an epoch of this dataset has 4 batches of 1"),
        ({"drop_last": True, "batch_size": 5}, "no batch of 5 examples"),
    ]:
        with pytest.raises(UserError) as caught:
            Loader(rows, **given)
        assert str(caught.value).find(words) >= 0, str(caught.value)
        assert "\n" not in str(caught.value)
    for dataset, words in [
        ([], "is it empty"),
        ((rows, rows[:3]), "4, 3 entries"),
        ("text", "dataset is 'text'"),
        (np.float32(3), "dataset is an object of type float32"),
        (3, "dataset is 3"),
        ({"x": 1}, "dataset is a dict"),
    ]:
        with pytest.raises(UserError, match=words):
            Loader(dataset)
    with pytest.raises(UserError, match="can be read once"):
        Loader(iter([rows]), epochs=2)
    with pytest.raises(UserError, match="is it empty"):
        list(Loader(iter([]), actors=0))
    with pytest.raises(UserError, match="shuffle=True: shard 0 has no length"):
        list(Loader(iter([iter([1, 2])]), actors=0))


def test_arrays_at_once_are_what_their_examples_make() -> None:
    rows = np.arange(24.0).reshape(12, 2)
    for dataset in (rows, (rows, np.arange(12)), {"x": rows, "y": np.arange(12, dtype="i2")}):
        at_once = list(Loader(dataset, batch_size=np.int64(5), actors=0))  # type: ignore[arg-type]
        by_one = list(Loader(dataset, lambda example: example, batch_size=5, actors=0))
        assert repr(at_once) == repr(by_one)
        assert len(at_once) == len(Loader(dataset, batch_size=5)) == 3


def test_a_transform_s_draws_depend_on_the_example_alone_and_leave_the_caller_s_generators() -> None:
    def drawn(example: int) -> tuple[int, float, float, float]:
        return example, random.random(), float(np.random.random()), float(torch.rand(1))

    def given(example: int, rng: np.random.Generator) -> tuple[int, float]:
        return example, rng.random()

    def named(example: int, scale: float = 1.0, *, rng: np.random.Generator) -> tuple[int, float]:
        return example, scale * rng.random()

    random.seed(5)
    first = random.random()
    random.seed(5)
    for transform in (drawn, given, named):
        small, large = (
            {
                int(row[0]): tuple(map(float, row))
                for _, batch in Loader(range(9), transform, **how)
                for row in zip(*batch, strict=True)
            }
            for how in ({"batch_size": 2, "actors": 0}, {"batch_size": 9, "actors": 0, "shuffle": False})
        )
        assert small == large
        assert len({row[1] for row in small.values()}) == 9
    assert random.random() == first


def test_the_generator_of_an_example_is_philox_of_its_key() -> None:
    def given(example: int, rng: np.random.Generator) -> Any:
        return rng.integers(1 << 30, dtype="u4"), rng.random(), rng.normal()

    [(_, drawn)] = Loader(range(3), given, batch_size=3, actors=0, shuffle=False, seed=4)
    for number in range(3):
        rng = np.random.Generator(np.random.Philox(key=key(4, "transform", 0, number)))
        assert (rng.integers(1 << 30, dtype="u4"), rng.random(), rng.normal()) == tuple(part[number] for part in drawn)


def test_each_epoch_and_each_for_has_an_order_of_its_own() -> None:
    loader = Loader(range(10), batch_size=10, actors=0, epochs=2)
    batches = [tuple(batch.tolist()) for _ in range(2) for _, batch in loader]
    assert len(set(batches)) == 4
    assert loader.state() == {"epoch": 3, "batch": 1}
    loader.load()
    assert [step for step, _ in loader] == [0, 1]


@pytest.mark.parametrize("at", range(9))
def test_a_state_gives_the_rest_of_the_for_in_which_it_was_taken(at: int) -> None:
    def loader(**how: Any) -> Loader:
        return Loader(range(10), batch_size=4, actors=0, epochs=3, seed=2, **how)

    whole = [(step, batch.tolist()) for step, batch in loader()]
    begun = loader()
    for step, _ in begun:
        if step == at:
            break
    rest = loader(start=begun.state())
    assert [(step, batch.tolist()) for step, batch in rest] == whole[at + 1 :]
    if at < 8:
        assert [(step, batch.tolist()) for step, batch in begun] == whole[at + 1 :]  # a `for` goes on where the last one ended


def test_a_loader_of_shards_resumes_too() -> None:
    class Shards:
        def __iter__(self) -> Iterator[Any]:
            yield np.arange(5)
            yield [10, 11, 12]
            yield np.arange(20, 24)

    def loader(**how: Any) -> Loader:
        return Loader(Shards(), batch_size=4, actors=0, epochs=2, **how)

    whole = [(step, batch.tolist()) for step, batch in loader()]
    assert sorted(number for step, batch in whole[:3] for number in batch) == [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23]
    begun = loader()
    for step, _ in begun:
        if step == 3:
            break
    assert begun.state() == {"epoch": 1, "batch": 1, "step": 4}
    rest = loader()
    rest.load_state_dict(begun.state_dict())
    assert [(step, batch.tolist()) for step, batch in rest] == whole[4:]
    with pytest.raises(TypeError, match="no length"):
        len(rest)


def test_an_older_for_ends_when_a_new_one_begins() -> None:
    loader = Loader(range(4), batch_size=1, actors=0)
    older = iter(loader)
    next(older)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="another one over the same loader"):
        next(older)


def test_torch_s_datasets_of_both_kinds_are_taken() -> None:
    class Stream(torch.utils.data.IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter(torch.arange(6.0))

    pairs = torch.utils.data.TensorDataset(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    [(_, (x, y))] = Loader(pairs, batch_size=3, actors=0, shuffle=False)
    assert (torch.from_numpy(x).tolist(), y.tolist()) == ([[0, 1], [2, 3], [4, 5]], [0, 1, 2])
    assert [batch.tolist() for _, batch in Loader(Stream(), batch_size=4, actors=0, shuffle=False)] == [[0, 1, 2, 3], [4, 5]]


def test_what_a_transform_raises_names_the_example() -> None:
    def fails(example: int) -> int:
        return 1 // (example - 3)

    with pytest.raises(ZeroDivisionError) as caught:
        list(Loader(range(5), fails, batch_size=2, actors=0, shuffle=False))
    assert caught.value.__notes__ == ["example 3, in batch 1 of epoch 0"]
