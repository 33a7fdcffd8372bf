"""The built-in federated jobs that read files: each learns from tiny files in the right format, and says what it wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole import run

from shoal.envs.datasets import cifar10, widened
from shoal.envs.leaf import IGNORED, LETTERS, femnist, shakespeare
from shoal.jobs.catalog import find
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.problems import Supervised
from shoal.protocol.errors import UserError

RNG = np.random.Generator(np.random.Philox(3))
ONE = {"rounds": 1, "clients": 3, "cohort": 2, "eval_every": 0}


def pictures(path: Path, labels: Any) -> np.ndarray:
    records = RNG.integers(0, 256, (len(labels), 3073), np.uint8)
    records[:, 0] = labels
    records.tofile(path)
    return records


def cifar_files(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    first, second = (pictures(folder / f"data_batch_{n}.bin", [n, 9, 0, 4, 5, 1]) for n in (1, 2))
    pictures(folder / "test_batch.bin", [3, 7])
    return first, second


def leaf_files(folder: Path, scale: float = 255.0) -> dict[str, Any]:
    writers = {
        f"f{n:04}_{n}": {
            "x": (RNG.integers(0, 256, (n + 2, 784)) / scale).tolist(),
            "y": RNG.integers(0, 62, n + 2).tolist(),
        }
        for n in range(4)
    }
    for part in ("train", "test"):
        (folder / part).mkdir()
        for at, names in enumerate((["f0003_3", "f0000_0"], ["f0001_1", "f0002_2"])):
            data = {name: writers[name] for name in names}
            text = {"users": names, "num_samples": [len(its["y"]) for its in data.values()], "user_data": data}
            (folder / part / f"all_data_{at}.json").write_text(json.dumps(text))
    return writers


SPEECH = "Speak the speech, I pray you, as I pronounced it to you,\ntrippingly on the tongue: but if you mouth it"
ALONE = (
    f"ACT I\n\nACT I.\n\nSCENE I. A hall.\n\nHAMLET.\n{SPEECH}\n\n [_Exit._]\n\nFIRST LORD.\n{SPEECH}\n\nHAMLET.\n{SPEECH}\n"
)
COLON = f"Hamlet:\n{SPEECH}\n\nFirst Lord:\n{SPEECH}\n\nHamlet:\n{SPEECH}\n\nAll:\nAy.\n"
INDENTED = "SCENE I.\n\n" + "".join(
    f"  {name}. " + SPEECH.replace("\n", "\n    ") + "\n" for name in ("Hamlet", "First Lord", "Hamlet")
)


def test_cifar10_is_read_from_its_binary_files_in_their_order(tmp_path: Path) -> None:
    files = cifar_files(tmp_path)
    train, held = cifar10(tmp_path)
    assert train.y.tolist() == [1, 9, 0, 4, 5, 1, 2, 9, 0, 4, 5, 1]
    assert held.y.tolist() == [3, 7]
    green = files[1][4, 1 + 1024 : 1 + 2048].reshape(32, 32)
    assert (train.x[10, 1] == green).all()
    assert (widened(train.x[10:11, 1], train.scale) == green.astype(np.float32)[None] / 255).all()


def test_the_network_of_pfls_benchmark_has_its_number_of_parameters() -> None:
    counts = {"cifar10": 1_626_442, "femnist": 6_603_710, "mnist": 1_663_370, "shakespeare": 820_185}
    for name, count in counts.items():
        module = find(name).module()
        assert sum(p.numel() for p in module.parameters()) == count
        assert [*module.buffers()] == []


def test_femnist_has_a_client_for_each_writer_and_holds_leafs_test_examples_out(tmp_path: Path) -> None:
    writers = leaf_files(tmp_path)
    population = femnist(tmp_path)
    assert population.clients == 4
    for client, name in enumerate(("f0003_3", "f0000_0", "f0001_1", "f0002_2")):
        examples, its = population.examples(client), writers[name]
        assert examples.y.tolist() == its["y"]
        assert examples.x.dtype == np.uint8
        np.testing.assert_allclose(widened(examples.x, 255.0).reshape(-1, 784), its["x"], atol=1e-6)
    assert population.held_out is not None
    assert len(population.held_out) == 14


def test_femnist_of_other_numbers_than_bytes_keeps_them(tmp_path: Path) -> None:
    writers = leaf_files(tmp_path, scale=300.0)
    examples = femnist(tmp_path).examples(1)
    assert (examples.x.dtype, examples.scale) == (np.float32, 1.0)
    np.testing.assert_array_equal(examples.x.reshape(-1, 784), np.float32(writers["f0000_0"]["x"]))


@pytest.mark.parametrize("text", [ALONE, COLON, INDENTED])
def test_a_speaking_role_is_a_client_in_each_edition_of_the_plays(tmp_path: Path, text: str) -> None:
    (tmp_path / "plays.txt").write_text(text)
    population = shakespeare(tmp_path / "plays.txt", held_out=0.5, length=40)
    assert population.clients == 2  # HAMLET and FIRST LORD; ALL speaks too little, ACT I is a heading
    said = f"{SPEECH}\n{SPEECH}"
    many = -(-(len(said) - 1) // 40)
    hamlet = population.examples(0)
    assert hamlet.x.shape == hamlet.y.shape == (many - round(many / 2), 40)
    assert "".join(LETTERS[n] for n in hamlet.x.reshape(-1)) == said[: hamlet.x.size]
    assert "".join(LETTERS[n] for n in hamlet.y.reshape(-1)) == said[1 : hamlet.y.size + 1]
    held = population.held_out
    assert held is not None
    assert (held.y[round(many / 2) - 1] == IGNORED).sum() == many * 40 - (len(said) - 1)


def test_an_unknown_letter_has_a_number_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("CÆSAR:\nno\n\nBRUTUS:\n\u2019tis so \u2014 and all is well with us\n")
    population = shakespeare(tmp_path / "plays.txt", length=10)
    assert population.clients == 1
    assert population.examples(0).x[0, 0] == len(LETTERS)


@pytest.mark.parametrize("name", ["cifar10", "femnist", "shakespeare"])
def test_each_job_learns_from_tiny_files(tmp_path: Path, name: str) -> None:
    place, more = tmp_path, dict[str, Any]()
    if name == "cifar10":
        cifar_files(tmp_path)
    elif name == "femnist":
        leaf_files(tmp_path)
    else:
        place, more = tmp_path / "plays.txt", {"clients": 2}
        place.write_text(COLON)
    job = find(name).configured({**ONE, **more, "data": place})
    job.try_out()
    assert isinstance(job.problem, Supervised)
    assert isinstance(job.method, FedAvg)
    metrics: dict[str, float] = {}
    for _, some in run(job, 0).seen.steps:
        metrics |= some
    assert np.isfinite([metrics["loss"], metrics["held_out_loss"], metrics["accuracy"]]).all()
    assert metrics["update_norm"] > 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar10", "no CIFAR10 there; put data_batch_1.bin to data_batch_5.bin and test_batch.bin"),
        ("femnist", "no FEMNIST there; put the folders train and test with LEAF's JSON files"),
        ("shakespeare", "no readable text"),
    ],
)
def test_a_job_without_its_files_says_which_files_it_wants(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        find(name).configured({"data": tmp_path / "nowhere"}).prepare()
    assert says in str(told.value)
    assert f"data={tmp_path / 'nowhere'}" in str(told.value)
    assert "https://" in str(told.value)
    assert "\n" not in str(told.value)


def test_files_of_another_format_are_refused_by_name(tmp_path: Path) -> None:
    cifar_files(tmp_path)
    for raw, says in ((b"short", "data_batch_2.bin: 5 bytes are not whole records of 3073"), (b"", "0 bytes")):
        (tmp_path / "data_batch_2.bin").write_bytes(raw)
        with pytest.raises(UserError, match=says):
            cifar10(tmp_path)
    pictures(tmp_path / "data_batch_2.bin", [1, 77])
    with pytest.raises(UserError, match=r"data_batch_2.bin: the label 77; expected 0 to 9"):
        cifar10(tmp_path)
    leaf_files(tmp_path)
    for text in ("[]", "{}", "not json", '{"user_data": {"w": {"x": [[1, 2]], "y": [1]}}}', '{"user_data": {"w": [1]}}'):
        (tmp_path / "train" / "all_data_1.json").write_text(text)
        with pytest.raises(UserError, match=r"all_data_1.json: expected LEAF's"):
            femnist(tmp_path)
    (tmp_path / "plays.txt").write_text("A novel, in which nobody speaks.")
    with pytest.raises(UserError, match="no role that speaks more than 80 characters"):
        shakespeare(tmp_path / "plays.txt")
