"""Who may read what, how often, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.kv_store.remote.tickets import MAX_RESUMES, Piece, Ticket, TicketBook
from shoal.kv_store.remote.wire import HELLO, Hello, Status, binding_of, share_out
from shoal.rpc.errors import ResourceExhausted

BINDING = binding_of("a", b"f", [b"k" * 16])


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Case:
    """A book with one ticket for two payloads of 1000 bytes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.book = TicketBook(max_tickets=2, clock=self.clock)
        self.num_ends = 0
        pieces = [Piece(-1, 1000 * number, memoryview(bytes(1000))) for number in range(2)]
        self.name = self.book.issue(BINDING, pieces, 1000, 10.0, self.end)

    def end(self) -> None:
        self.num_ends += 1

    def hello(self, offset: int = 0, end: int = 2000) -> Hello:
        return Hello(self.name, BINDING, offset, end)

    def open(self, offset: int = 0) -> Ticket:
        ticket = self.book.open(self.hello(offset))
        assert isinstance(ticket, Ticket)
        return ticket


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_ticket_is_good_once(case: Case) -> None:
    case.book.end(case.open())
    assert case.book.open(case.hello()) is Status.NO_SUCH_TICKET
    assert case.num_ends == 1


def test_nobody_reads_it_beside_its_reader(case: Case) -> None:
    case.open()
    assert case.book.open(case.hello()) is Status.BUSY


def test_a_forged_one_is_unknown(case: Case) -> None:
    assert case.book.open(replace(case.hello(), ticket=bytes(32))) is Status.NO_SUCH_TICKET


@pytest.mark.parametrize(
    "binding",
    [
        binding_of("b", b"f", [b"k" * 16]),
        binding_of("a", b"g", [b"k" * 16]),
        binding_of("a", b"f", [b"l" * 16]),
        binding_of("a", b"f", [b"k" * 16] * 2),
        binding_of("af", b"", [b"k" * 16]),
    ],
)
def test_one_for_something_else_is_refused(case: Case, binding: bytes) -> None:
    assert case.book.open(replace(case.hello(), binding=binding)) is Status.NO_SUCH_TICKET
    case.open()


def test_its_time_ends(case: Case) -> None:
    case.clock.now_s += 10.0
    assert case.book.open(case.hello()) is Status.NO_SUCH_TICKET
    assert case.book.expire() == 1
    assert (case.num_ends, len(case.book)) == (1, 0)


def test_one_that_is_being_read_ends_with_the_reading(case: Case) -> None:
    ticket = case.open()
    case.clock.now_s += 10.0
    assert case.book.expire() == 0
    assert case.num_ends == 0
    case.book.pause(ticket, 1500)
    assert case.num_ends == 1


def test_a_reader_comes_back_for_the_rest_and_not_for_more(case: Case) -> None:
    case.book.pause(case.open(), 1500)
    assert case.book.open(case.hello(1501)) is Status.BAD_OFFSET
    ticket = case.open(1400)
    case.book.pause(ticket, 1450)
    assert isinstance(case.book.open(case.hello(1500)), Ticket)


@pytest.mark.parametrize(("offset", "end"), [(1, 2000), (0, 2001), (1 << 63, 1 << 63), (5, 4)])
def test_offsets_are_within_what_it_is_for(case: Case, offset: int, end: int) -> None:
    assert case.book.open(case.hello(offset, end)) is Status.BAD_OFFSET


def test_a_reader_does_not_come_back_for_ever(case: Case) -> None:
    for _ in range(MAX_RESUMES + 1):
        assert case.num_ends == 0
        case.book.pause(case.open(), 0)
    assert case.num_ends == 1
    assert case.book.open(case.hello()) is Status.NO_SUCH_TICKET


def test_there_are_so_many_and_no_more(case: Case) -> None:
    case.book.issue(BINDING, [], 1000, 10.0, case.end)
    with pytest.raises(ResourceExhausted):
        case.book.issue(BINDING, [], 1000, 10.0, case.end)
    case.book.end_all()
    assert (case.num_ends, len(case.book)) == (2, 0)


@pytest.mark.parametrize(("num_blocks", "num_tickets"), [(1, 1), (2, 2), (7, 3), (64, 2), (9, 8)])
def test_blocks_are_shared_out_in_order_and_evenly(num_blocks: int, num_tickets: int) -> None:
    parts = share_out(num_blocks, num_tickets)
    assert [number for part in parts for number in part] == list(range(num_blocks))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == num_tickets
    assert sizes[0] - sizes[-1] <= 1


def test_only_hellos_of_this_version_are_understood(case: Case) -> None:
    data = case.hello(3, 4).pack()
    assert Hello.unpack(data) == case.hello(3, 4)
    for wrong in (data[:-1], data + b"x", b"HTTP" + data[4:], data[:4] + b"\xff" + data[5:], bytes(HELLO.size)):
        assert Hello.unpack(wrong) is None
