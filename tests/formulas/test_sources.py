"""Data sets as people have them become the same examples; what is none is refused in one line that says what is accepted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from shoal.envs.datasets import Examples
from shoal.envs.partition import dirichlet, iid, parts_of
from shoal.envs.population import Population
from shoal.envs.sources import examples_of
from shoal.jobs.populations import populated
from shoal.protocol.errors import UserError

pd = pytest.importorskip("pandas")
N = 60
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 4)).astype(np.float32), RNG.integers(0, 3, N)
FRAME = pd.DataFrame({f"x{i}": X[:, i] for i in range(4)} | {"label": Y})


class Items(Dataset[Any]):
    """As torchvision's: an item at a time."""

    def __init__(self, x: Any = X, y: Any = Y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return torch.from_numpy(self.x[i]), int(self.y[i])


class Table:
    """What Shoal asks of a Hugging Face table, and nothing else of it."""

    def __init__(self, columns: dict[str, Any], formatted: bool = False) -> None:
        self.columns_of, self.formatted = columns, formatted

    @property
    def column_names(self) -> list[str]:
        return list(self.columns_of)

    def __len__(self) -> int:
        return len(next(iter(self.columns_of.values())))

    def with_format(self, kind: str) -> Table:
        assert kind == "numpy"
        return Table(self.columns_of, True)

    def __getitem__(self, which: Any) -> Any:
        assert self.formatted
        assert which == slice(None)
        return {name: np.asarray(column) for name, column in self.columns_of.items()}


class Tables(dict[str, Table]):
    """And of a DatasetDict."""

    column_names, with_format = property(lambda self: {}), None


def same(found: Examples, x: Any = X, y: Any = Y) -> None:
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    "data",
    [
        Examples(X, Y),
        (X, Y),
        (X.tolist(), Y.tolist()),
        (torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)),
        (FRAME.drop(columns="label"), FRAME["label"]),
        (FRAME, "label"),
        (FRAME.astype({"label": "Int64"}), "label"),
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        Items(),
        Subset(Items(), list(range(N))),
        ConcatDataset([Items(X[:20], Y[:20]), Items(X[20:], Y[20:])]),
        (Table({f"x{i}": X[:, i] for i in range(4)} | {"label": Y}), "label"),
        (Table({"image": X, "label": Y}), "label"),
        (pd.DataFrame({"image": list(X), "label": Y}), "label"),
    ],
    ids=lambda data: f"{type(data).__name__}-{getattr(type(data[0]), '__name__', '')}" if isinstance(data, tuple) else None,
)
def test_every_form_of_data_is_the_same_examples(data: Any) -> None:
    same(examples_of(data))


def test_examples_may_have_weights() -> None:
    weight = np.linspace(0, 1, N)
    for data in ((X, Y, weight), TensorDataset(torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(weight))):
        np.testing.assert_array_equal(examples_of(data)[5:9].weight, weight[5:9].astype(np.float32))
    for wrong in (weight[:-1], -weight, weight * np.nan, weight[:, None]):
        with pytest.raises(UserError, match=rf"examples: weights of shape .*; expected \[{N}\], each a finite number from 0"):
            examples_of((X, Y, wrong))


def test_whole_numbers_in_columns_are_measurements_and_in_arrays_stay_what_they_are() -> None:
    frame = pd.DataFrame({"age": [30, 40], "tall": [True, False], "label": [0, 1]})
    same(examples_of((frame, "label")), [[30, 1], [40, 0]], [0, 1])
    tokens = examples_of((Table({"tokens": [[5, 7], [9, 2]], "label": [0, 1]}), "label"))
    assert (tokens.x.dtype, tokens.x.tolist()) == (np.int64, [[5, 7], [9, 2]])


def changed(**columns: Any) -> Any:
    return FRAME.assign(**columns)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((changed(city="Rome"), "label"), "column 'city' holds "),
        ((changed(x1=[np.nan, np.nan, *X[2:, 1]]), "label"), "column 'x1' has 2 missing values (nan)"),
        ((changed(x1=pd.array([None, *[1] * (N - 1)], dtype="Int64")), "label"), "column 'x1' "),
        ((changed(label=["a", "b"] * (N // 2)), "label"), "column 'label' holds "),
        ((FRAME.rename(columns={"x1": "x0"}), "label"), "the table has 2 columns called 'x0': rename all but one"),
        ((FRAME, "lable"), "the table has the columns x0, x1, x2, x3, label: expected 'lable', and others beside it"),
        ((FRAME[["label"]], "label"), "the table has the columns label: expected 'label', and others beside it"),
        ((Table({"a": X, "b": X, "label": Y}), "label"), "column 'a' holds arrays [4]: expected numbers beside"),
        ((Table({"text": ["a", "b"], "label": [0, 1]}), "label"), "column 'text' holds <U1[2]: expected numbers"),
        (([[1, 2], [3]], [0, 1]), "x has shape [2] in example 0 and [1] in example 1"),
        ((np.array(["a"]), [0]), "x holds <U1[1]: expected numbers [n, ...]"),
        ((np.array(3.0), [0]), "x holds float64[]: expected numbers [n, ...]"),
        (([None], [0]), "x holds object[1]: expected numbers"),
        ((X, Y[:-1]), "examples: 60 inputs but 59 labels"),
        (Items([X[0], X[1, :2]], Y[:2]), "x has shape [4] in example 0 and [2] in example 1"),
        ([3, 4], "data is a list of 2 (int, ...): expected a tuple (x, y)"),
        (Items([], []), "data is of type Items (test_sources) without any items"),
        ("digits.csv", "data is of type str: expected a tuple (x, y)"),
        (FRAME, "data is of type DataFrame (pandas): expected a tuple (x, y)"),
        (Table({"x": X, "label": Y}), "data is of type Table (test_sources): expected a tuple (x, y)"),
        ((Tables(train=Table({"x": X, "label": Y})), "label"), "data is a tuple (Tables, str): expected a tuple (x, y)"),
        (
            (X, Y, Y, Y),
            "data is a tuple of 4 arrays: (x, y, weight, client) needs partition=natural; else leave the client out",
        ),
        ((X, Y, Y, Y, Y), "data is a tuple (ndarray, ndarray, ndarray, ndarray, ...): expected a tuple (x, y)"),
        (TensorDataset(torch.from_numpy(X)), "data is a tuple (Tensor): expected a tuple (x, y)"),
        (X, "data is of type ndarray (numpy): expected a tuple (x, y)"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_data_set_is_refused_in_one_line(data: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        examples_of(data)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_an_item_that_is_no_pair_is_named() -> None:
    class Words(Items):
        def __getitem__(self, i: int) -> Any:
            return {"x": 1} if i == 2 else super().__getitem__(i)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(UserError, match=r"item 2 of Words is of type dict: expected a pair \(x, y\)"):
        examples_of(Words())
    with pytest.raises(UserError, match="data is of type Stream "):
        examples_of(Stream())


# Populations ----------------------------------------------------------------------------------------------------------------


def settings(**changed: Any) -> SimpleNamespace:
    own = {"partition": "iid", "alpha": 0.5, "shards_per_client": 2, "classes": 2}
    return SimpleNamespace(**{"clients": 4, "held_out": 0.2, **own, **changed})


def everything(population: Population) -> list[Any]:
    parts = [population.examples(client) for client in range(population.clients)]
    return [*[(part.x.tolist(), part.y.tolist()) for part in parts], population.held_out and population.held_out.x.tolist()]


def test_a_data_set_is_divided_and_a_share_held_out_whatever_its_form() -> None:
    expected = everything(populated((X, Y), settings(), 0))
    assert (len(expected), len(expected[-1])) == (5, 12)
    for data in ([X, Y], lambda: (X, Y), Items(), (FRAME, "label"), TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))):
        assert everything(populated(data, settings(), 0)) == expected
    assert everything(populated(lambda settings: (X * settings.scale, Y), settings(scale=1), 0)) == expected


def test_the_second_of_a_pair_is_what_is_held_out() -> None:
    table = Table({"image": X, "label": Y})
    fewer = Table({"image": X[:9], "label": Y[:9]})
    pairs = [((X, Y), (X[:9], Y[:9])), (Items(), (X[:9], Y[:9])), ((FRAME, "label"), (FRAME[:9], "label"))]
    pairs += [((table, "label"), (fewer, "label")), (Tables(train=table, test=fewer, other=table), "label")]
    for data in [*pairs, (Tables(train=table, validation=fewer), "label")]:
        found = populated(data, settings(), 0)
        assert everything(found)[-1] == X[:9].tolist()
        assert sum(len(found.examples(client)) for client in range(4)) == N
    with pytest.raises(UserError, match="data has the splits train, dev: expected train, and test or validation"):
        populated((Tables(train=table, dev=fewer), "label"), settings(), 0)


def test_a_list_is_one_data_set_a_client() -> None:
    clients: list[Any] = [(X[:10], Y[:10]), Items(X[10:30], Y[10:30]), (FRAME[30:50], "label"), Examples(X[50:], Y[50:])]
    alone, beside = populated(clients, settings(), 0), populated((clients, (X[:9], Y[:9])), settings(clients=3), 0)
    for client, (first, last) in enumerate([(0, 10), (10, 30), (30, 50), (50, 60)]):
        same(alone.examples(client), X[first:last], Y[first:last])
    assert (alone.held_out, beside.clients) == (None, 4)
    same(beside.held_out, X[:9], Y[:9])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="clients=5: the data has 4 clients; allowed is from 1 to that"):
        populated(clients, settings(clients=5), 0)


def test_what_is_wrong_with_a_client_of_a_list_names_the_client() -> None:
    with pytest.raises(UserError, match="client 1: data is of type str: expected"):
        populated([(X, Y), "more.csv"], settings(clients=2), 0)
    with pytest.raises(UserError, match="client 0: examples: 60 inputs but 3 labels"):
        populated([(X, Y[:3]), (X, Y)], settings(clients=2), 0)
    population = Population(3, lambda client: (X, Y) if client else X)
    same(population.examples(1))
    with pytest.raises(UserError, match="client 0: data is of type ndarray "):
        population.examples(0)


def test_what_is_no_population_is_told_all_that_is_accepted() -> None:
    for data in (3, "mnist", [], [1, 2], ((X, Y), [(X, Y)]), {"x": X, "y": Y}, lambda: None):
        with pytest.raises(
            UserError, match=r"^data is .*: expected a tuple .*DataFrame.*Hugging Face.*torch Dataset.*Population"
        ):
            populated(data, settings(), 0)


def test_clients_whose_examples_differ_in_shape_are_told_at_once() -> None:
    sets = [(np.zeros((4, 3)), np.zeros(4, int)), (np.zeros(0), np.zeros(0, int)), (np.zeros((2, 5)), np.zeros(2, int))]
    with pytest.raises(UserError, match=r"^client 2: an example's x has shape \[5\], and \[3\] at client 0$"):
        populated(sets, settings(), 0)
    assert populated(sets[:2], settings(clients=2), 0).clients == 2


# A partition of one's own ---------------------------------------------------------------------------------------------------


def test_a_partition_may_be_a_function() -> None:
    def striped(labels: Any, clients: int, seed: int) -> Any:
        return [list(range(client, len(labels), clients)) for client in range(clients)]

    found = populated(((X, Y), (X[:3], Y[:3])), settings(partition=striped), 7)
    same(found.examples(1), X[1::4], Y[1::4])
    by_name, by_function = (populated((X, Y), settings(partition=partition), 7) for partition in ("iid", iid))
    assert everything(by_name) == everything(by_function)
    assert [len(part) for part in parts_of(dirichlet, Y, 4, 0)] == [len(part) for part in dirichlet(Y, 4, seed=0)]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (None, "gave NoneType: expected a list of 2 arrays of indices, one a client"),
        ([[0, 1]], "gave 1: expected a list of 2 arrays of indices, one a client"),
        ([[0, 1], []], ", client 1: float64[0]; expected at least one index, whole numbers [n]"),
        ([[0, 1], [0.5]], ", client 1: float64[1]; expected at least one index, whole numbers [n]"),
        ([[[0, 1]], [2]], ", client 0: int64[1, 2]; expected at least one index, whole numbers [n]"),
        ([[0, 1], [True]], ", client 1: bool[1]; expected at least one index, whole numbers [n]"),
        ([[0, 1], [2, [3, 4]]], ", client 1: lists of unequal lengths, not whole numbers [n]"),
        ([[0, 1], ["two"]], ", client 1: <U3[1]; expected at least one index, whole numbers [n]"),
        ([[0, 1], [2, 60]], ", client 1: index 60; expected 0 to 59"),
        ([[-1, 1], [2]], ", client 0: index -1; expected 0 to 59"),
        ([[0, 1], [5, 1]], ", client 1: index 1 is given twice; expected once at most"),
        ([[3, 3], [5]], ", client 0: index 3 is given twice; expected once at most"),
    ],
)
def test_a_partition_that_is_none_names_the_client_and_the_index(parts: Any, says: str) -> None:
    def mine(labels: Any, clients: int, seed: int) -> Any:
        return parts

    with pytest.raises(UserError) as refused:
        parts_of(mine, Y, 2, 0)
    assert str(refused.value) == f"partition mine{'' if says[0] == ',' else ' '}{says}"
