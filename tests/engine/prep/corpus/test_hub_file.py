"""Files read by ranges: the bytes are right whatever the server does, and waiting is bounded and jittered."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.engine.prep.corpus import hub_file
from automodel_cli.engine.prep.corpus.hub_file import RangeFile, Retry, TransientError
from automodel_cli.errors import DataError
from tests.engine.prep.corpus.fake_hub import FakeHub, Fault, serving

CONTENT = bytes(range(256)) * 40
FAULTS = st.one_of(
    st.none(),
    st.builds(Fault, status=st.sampled_from([429, 500, 503])),
    st.builds(Fault, drop_after=st.integers(0, 50)),
)


@pytest.fixture(scope="module")
def hub():
    with serving(FakeHub()) as served:
        commit = served.commit("org/x", {"a.bin": CONTENT})
        served.file_url = f"{served.url}/datasets/org/x/resolve/{commit}/a.bin"
        yield served


def opened(hub, waits: list[str] | None = None, seconds: float = 1000.0) -> RangeFile:
    retry = Retry(seconds, (waits if waits is not None else []).append, sleep=lambda _: None)
    return RangeFile(hub.file_url, "a.bin", len(CONTENT), retry)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, 3000)), max_size=6),
    faults=st.lists(FAULTS, max_size=8),
    ahead=st.integers(0, 5000),
)
def test_any_part_is_read_right_through_any_faults(hub, steps, faults, ahead):
    """The same bytes as of a file in memory, at every place and length."""
    coming = iter(faults)
    hub.faults = lambda path, number: next(coming, None)
    file, memory = opened(hub), io.BytesIO(CONTENT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_file, "_READ_AHEAD_BYTES", ahead)
        for offset, size in steps:
            assert (file.seek(offset), file.read(size), file.tell()) == (
                memory.seek(offset),
                memory.read(size),
                memory.tell(),
            )


def test_reading_forward_takes_few_requests(hub):
    """A request for every few bytes would cost more than the bytes."""
    hub.faults = lambda path, number: None
    before = len(hub.requests)
    file = opened(hub)

    read = b"".join(iter(lambda: file.read(100), b""))

    assert read == CONTENT
    assert len(hub.requests) - before == 1


@pytest.mark.parametrize("status", [403, 404, 416])
def test_an_answer_that_will_not_change_is_an_error_at_once(hub, status):
    """Waiting would not help."""
    hub.faults = lambda path, number: Fault(status=status)
    waits: list[str] = []

    with pytest.raises(DataError, match=f"the server answers {status}"):
        opened(hub, waits).read(10)
    assert waits == []


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def failing(times: int, retry_after_s: float | None = None):
    left = iter(range(times))

    def attempt() -> str:
        for _ in left:
            raise TransientError("gone", retry_after_s)
        return "here"

    return attempt


def test_waits_grow_with_jitter_up_to_a_bound():
    """No wait is longer than half a minute, and two runs do not wait alike."""
    clocks = [Clock(), Clock()]

    for clock in clocks:
        retry = Retry(1000.0, lambda _: None, clock.sleep, lambda clock=clock: clock.now)
        assert retry.run(failing(12), "x") == "here"

    assert clocks[0].naps != clocks[1].naps
    for clock in clocks:
        assert all(0.5 <= nap / min(0.5 * 2**number, 30.0) <= 1.0 for number, nap in enumerate(clock.naps))


def test_the_server_is_waited_for_as_long_as_it_asks():
    """`Retry-After` is a minimum."""
    clock = Clock()

    Retry(1000.0, lambda _: None, clock.sleep, lambda: clock.now).run(failing(3, retry_after_s=45.0), "x")

    assert clock.naps == [45.0] * 3


def test_the_budget_ends_with_an_error_that_says_how_to_go_on():
    """After as long as was said, and not before; every wait was told."""
    clock = Clock()
    told: list[str] = []

    with pytest.raises(DataError, match=r"(?s)x: no connection for 100 s: gone.*the same command continues"):
        Retry(100.0, told.append, clock.sleep, lambda: clock.now).run(failing(1000), "x")

    assert clock.now == pytest.approx(100.0)
    assert len(told) == len(clock.naps)
    assert told[0].startswith("x: gone; trying again in 0.")
