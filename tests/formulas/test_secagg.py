"""Secure aggregation: exact sums with drop-outs, nothing told below the threshold, and the primitives' published vectors."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="the extra shoal[secagg] is not installed")

from shoal.protocol import sealing
from shoal.protocol.secagg import PHASES, Aborted, Advert, Client, Server, Shares, Terms, enough, graph, numbers_of, words_of


class Session:
    """A session of honest clients, of which some drop out: client -> the phase in which it says nothing any more."""

    def __init__(self, rng: Random, terms: Terms, gone: dict[int, str], size: int = 5) -> None:
        self.rng, self.terms, self.gone = rng, terms, gone
        signing = {client: rng.randbytes(32) for client in terms.clients}
        self.known = {client: sealing.signer_of(seed) for client, seed in signing.items()}
        self.clients = {
            client: Client(terms, client, signing=signing[client], known=self.known, random=rng.randbytes)
            for client in terms.clients
        }
        self.vectors = {
            client: np.array([rng.randrange(-(2**60), 2**60) for _ in range(size)], np.int64) for client in terms.clients
        }
        self.server = Server(terms, size)
        self.seen: dict[int, np.ndarray] = {}

    def here(self, phase: str) -> list[int]:
        at = PHASES.index(phase)
        left = [client for client in self.terms.clients if client not in self.gone or PHASES.index(self.gone[client]) > at]
        self.rng.shuffle(left)  # the order of arrival decides nothing
        return left

    def run(self) -> np.ndarray:
        server = self.server
        for client in self.here("advertise"):
            server.advertised(client, self.clients[client].advertise())
        told = server.close_advertise()
        for client in self.here("share"):
            server.shared(client, self.clients[client].share(told[client]))
        sealed = server.close_share()
        for client in self.here("mask"):
            masked = self.clients[client].mask(sealed[client], words_of(self.vectors[client]))
            self.seen[client] = masked.copy()
            server.took(client, masked)
        lists = server.close_mask()
        for client in self.here("confirm"):
            server.confirmed(client, self.clients[client].confirm(lists[client]))
        signed = server.close_confirm()
        for client in self.here("unmask"):
            server.unmasked(client, self.clients[client].unmask(signed[client]))
        return numbers_of(server.close_unmask())

    def expected(self) -> np.ndarray:
        return np.sum([self.vectors[client] for client in self.server.masked], axis=0)


def drawn(seed: int, most: int = 9) -> Session:
    rng = Random(seed)
    many = rng.randrange(2, most)
    clients = tuple(rng.sample(range(1000), many))
    neighbours = rng.choice([0, 2, 4, 6]) if many > 4 else 0
    degree = min(neighbours or many - 1, many - 1)
    terms = Terms.of(
        rng.randbytes(16), clients, neighbours, rng.randrange(degree // 2 + 1, degree + 1), rng.randrange(2, many // 2 + 2)
    )
    gone = {client: rng.choice(("mask", *PHASES)) for client in clients if rng.random() < rng.choice([0, 0.1, 0.3, 0.3])}
    return Session(rng, terms, gone)


def check_told(session: Session) -> None:
    """The server never has both kinds of shares of a client, and none of the key of a client in the sum, whose pairwise
    masks stay on."""
    told = session.server.told.values()
    keys = {client for shares in told for client in shares.keys}
    assert not {client for shares in told for client in shares.own} & keys
    assert not keys & set(session.server.masked)


def test_the_sum_is_exact_over_a_thousand_schedules_of_drop_outs_and_nothing_else_is_told():
    sums = short = dropped = 0
    for seed in range(1000):
        session = drawn(seed)
        try:
            total = session.run()
        except Aborted:
            short += 1
            assert session.gone
            continue
        finally:
            check_told(session)
        assert np.array_equal(total, session.expected())  # modulo 2**64, as int64 adds
        assert len(session.server.masked) >= session.terms.least
        sums, dropped = sums + 1, dropped + bool(session.server.ciphers.keys() - set(session.server.masked))
    assert sums > 500
    assert short > 50
    assert dropped > 50  # sums from which a drop-out's pairwise masks were taken


def test_what_a_server_sees_of_a_client_is_masked_by_a_mask_that_it_cannot_make():
    session = Session(Random(3), Terms.of(b"s", range(6)), {5: "mask"})
    session.run()
    server = session.server
    for client in server.masked:
        near = [other for other in server.neighbours[client] if other in server.masked]
        assert near  # a pairwise mask with a client of which no key was told
        own = session.clients[client]._seed
        bare = session.seen[client] - sealing.mask(own, 5)  # what the server has after it took the mask of its own off
        assert not np.array_equal(numbers_of(bare), session.vectors[client])


def test_a_thousand_clients_are_joined_to_a_few_neighbours_each_and_all_hang_together():
    terms = Terms.of(b"s", range(1000))
    assert terms.degree == enough(1000) < 160
    adverts = {client: Advert(client.to_bytes(32, "big"), client.to_bytes(32, "big"), b"") for client in range(1000)}
    near = graph(terms, adverts)
    assert {len(others) for others in near.values()} == {terms.degree}
    assert all(client in near[other] for client, others in near.items() for other in others)
    other = graph(Terms.of(b"t", range(1000)), adverts)
    assert near != other


# A server that lies


def begun(many: int = 4) -> tuple[Session, dict[int, dict[int, bytes]]]:
    """A session up to the answer to the phase share."""
    session = Session(Random(7), Terms.of(b"s", range(many)), {})
    for client in range(many):
        session.server.advertised(client, session.clients[client].advertise())
    told = session.server.close_advertise()
    for client in range(many):
        session.server.shared(client, session.clients[client].share(told[client]))
    return session, session.server.close_share()


def masked(many: int = 4) -> Session:
    session, sealed = begun(many)
    for client in range(many):
        session.server.took(client, session.clients[client].mask(sealed[client], words_of(session.vectors[client])))
    return session


def test_keys_that_a_client_did_not_sign_are_refused():
    session = Session(Random(7), Terms.of(b"s", range(4)), {})
    for client in range(4):
        session.server.advertised(client, session.clients[client].advertise())
    told = session.server.close_advertise()
    mine = sealing.public_of(bytes(31) + b"\1")
    honest = told[0][1]
    told[0][1] = Advert(mine, honest.masking, honest.signature)
    with pytest.raises(Aborted, match="keys of client 1 that client 1 did not sign"):
        session.clients[0].share(told[0])


def test_an_advert_of_another_session_is_refused():
    one, two = (Session(Random(7), Terms.of(name, range(3)), {}) for name in (b"one", b"two"))
    adverts = {client: one.clients[client].advertise() for client in (1, 2)}
    two.clients[0].advertise()
    with pytest.raises(Aborted, match="did not sign"):
        two.clients[0].share(adverts)


def test_shares_sealed_for_another_client_are_refused():
    session, sealed = begun()
    sealed[0][1], sealed[0][2] = sealed[0][2], sealed[0][1]
    with pytest.raises(Aborted, match="was changed on its way"):
        session.clients[0].mask(sealed[0], words_of(session.vectors[0]))


def test_a_client_unmasks_under_one_list_only():
    session = masked()
    with pytest.raises(Aborted, match="not on once"):
        session.clients[0].confirm((1, 2, 3))
    lists = {0: (0, 1, 2, 3), 1: (1, 2, 3), 2: (0, 1, 2, 3), 3: (1, 2, 3)}  # to some, client 0 dropped out
    session = masked()
    signed = {client: session.clients[client].confirm(lists[client]) for client in range(4)}
    with pytest.raises(Aborted, match=r"1 neighbours signed the same list of survivors, fewer than 2"):
        session.clients[1].unmask({other: signed[other] for other in (0, 2, 3)})
    with pytest.raises(Aborted, match="a second time"):
        session.clients[1].unmask({other: signed[other] for other in (0, 2, 3)})


def test_a_client_refuses_a_sum_of_too_few():
    session = masked()
    with pytest.raises(Aborted, match="a sum of 2 clients would tell too much; at least 3"):
        session.clients[0].confirm((0, 1))


def test_a_client_masks_one_vector_only():
    session, sealed = begun()
    session.clients[0].mask(sealed[0], words_of(session.vectors[0]))
    with pytest.raises(Aborted, match="a second time, or out of turn"):
        session.clients[0].mask(sealed[0], words_of(session.vectors[1]))


def test_shares_of_another_secret_give_no_sum():
    session = Session(Random(7), Terms.of(b"s", range(4)), {3: "mask"})
    unmasked = session.server.unmasked

    def lied(client: int, shares: Shares) -> None:
        keys = (
            {other: share[:-1] + bytes([share[-1] ^ 1]) for other, share in shares.keys.items()} if client == 0 else shares.keys
        )
        unmasked(client, Shares(shares.own, keys))

    session.server.unmasked = lied  # type: ignore[method-assign]
    with pytest.raises(Aborted, match=r"give another key|are not of one secret"):
        session.run()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Terms.of(b"s", (1,)), "needs from 2 to 1"),
        (lambda: Terms.of(b"s", range(10), least=1), "at least 1 of them"),
        (lambda: Terms.of(b"s", range(10), threshold=4), "threshold=4: of 9 neighbours more than half"),
        (lambda: Terms.of(b"s", range(10), threshold=10), "threshold=10: of 9"),
    ],
)
def test_terms_that_protect_nothing_are_refused(make: Callable[[], Terms], said: str):
    with pytest.raises(Aborted, match=said):
        make()


def test_clients_that_fall_apart_give_no_sum():
    session = Session(Random(1), Terms.of(b"s", range(8), neighbours=2, threshold=2, least=2), {})
    server = session.server
    for client in range(8):
        server.advertised(client, session.clients[client].advertise())
    told = server.close_advertise()
    for client in range(8):
        server.shared(client, session.clients[client].share(told[client]))
    sealed = server.close_share()
    first = 0
    lone = next(other for other in range(1, 8) if other not in told[first])
    for client in (first, lone):  # two that share no mask
        server.took(client, session.clients[client].mask(sealed[client], words_of(session.vectors[client])))
    with pytest.raises(Aborted, match="share no mask with the others"):
        server.close_mask()


# Primitives


def test_x25519_is_that_of_rfc_7748():
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")  # section 6.1
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert sealing.public_of(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert sealing.public_of(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert sealing.agreed(alice, sealing.public_of(bob)).hex() == shared
    assert sealing.agreed(bob, sealing.public_of(alice)).hex() == shared
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")  # section 5.2
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert sealing.agreed(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    with pytest.raises(ValueError, match="shared key"):
        sealing.agreed(alice, bytes(32))  # a point of low order


def test_hkdf_is_that_of_rfc_5869():
    one = sealing.derived(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert one.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    three = sealing.derived(b"\x0b" * 22, b"", b"", 42)
    assert three.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"


def test_masks_are_the_key_stream_of_aes_256_in_counter_mode():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    seed, many = bytes(range(32)), sealing.PIECE // 8 + 3  # over a piece's end
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    counters = b"".join(at.to_bytes(16, "big") for at in range(-(-many // 2)))
    assert np.array_equal(sealing.mask(seed, many), np.frombuffer(block.update(counters), "<u8")[:many])


def test_any_threshold_of_shares_gives_the_secret_and_fewer_give_another():
    rng = Random(1)
    for threshold, many in ((1, 1), (2, 3), (5, 9)):
        secret = rng.randbytes(32)
        shares = sealing.shares_of(secret, threshold, range(1, many + 1), rng.randbytes)
        for _ in range(10):
            chosen = rng.sample(sorted(shares), threshold)
            assert sealing.joined({place: shares[place] for place in chosen}) == secret
        few = dict(sorted(shares.items())[: threshold - 1])
        assert threshold == 1 or sealing.joined(few) != secret
    with pytest.raises(ValueError, match="no such sharing"):
        sealing.shares_of(bytes(32), 4, [1, 2, 3], rng.randbytes)


def test_the_field_of_the_shares_is_that_of_a_prime():
    def composite(base: int) -> bool:  # Miller and Rabin
        odd, twos = sealing.PRIME - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        x = pow(base, odd, sealing.PRIME)
        return x not in (1, sealing.PRIME - 1) and all(
            (x := x * x % sealing.PRIME) != sealing.PRIME - 1 for _ in range(twos - 1)
        )

    assert not any(composite(base) for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37))
    assert sealing.PRIME > 2**256
