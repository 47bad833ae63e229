"""Watches the ranks of this machine: names one that hangs, ends ranks that cannot continue, stops repeated failures.

Runs as a thread beside torchrun's agent, which only sees whether processes live. A rank hangs if it gave no sign of
life for the time limit of collectives, or if others have waited for it that long. Then all are killed, and the agent
starts them again where restarts are left. When a rank has failed, its peers get only a few seconds to notice: without
its part they could not save a whole checkpoint. Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from automodel_cli.engine.distributed.heartbeat import Beat, Phase, frames_of, process_state, read_beats
from automodel_cli.engine.distributed.rank_report import RankReport, read_reports, root_cause
from automodel_cli.errors import AmcliError, ExitCode, RankFailedError

_SECONDS_BETWEEN_LOOKS = 0.5
# A rank without a beat for this long counts as frozen; at most half the time limit.
_FROZEN_SECONDS = 5.0
# Time that the peers of a failed rank have to notice by themselves.
_NOTICE_SECONDS = 5.0
# If this thread did not run for this long, the launcher itself was stopped, and its ranks with it, as by Ctrl-Z.
_STOPPED_SECONDS = 10.0
# Numbers and addresses differ from one failure to the next of its kind.
_ANY_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
# If a peer was killed from outside, a rank without a beat for this long is frozen, and not only slow.
_SURELY_FROZEN_SECONDS = 30.0
_STATES = {
    "T": "the process is stopped, as SIGSTOP does",
    "t": "the process is stopped by a debugger",
    "D": "the process is stuck in the kernel: a disk or a device does not answer",
}


@dataclass(frozen=True)
class _Failure:
    """How an attempt ended: at which step, and a text that is equal for failures of one kind."""

    step: int
    kind: str


@dataclass
class Watch:
    """What is known about the ranks of this machine.

    Args:
        directory: Where they write their beats and reports.
        timeout_seconds: Time that a rank may let the others wait.
        restarts: Number of allowed restarts of all ranks.
        say: Called with the reason of a restart.
    """

    directory: Path
    timeout_seconds: float
    restarts: int
    say: Callable[[str], None]
    verdicts: dict[int, RankFailedError] = field(default_factory=dict)
    repeated: RankFailedError | None = None
    _failed_at: dict[int, float] = field(default_factory=dict)
    _failures: dict[int, _Failure] = field(default_factory=dict)
    _last_look: float = field(default_factory=time.monotonic)
    _patient_until: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches during the body."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_SECONDS_BETWEEN_LOOKS):
                # A file may disappear while it is read: its rank has just started or ended.
                with contextlib.suppress(OSError):
                    self.look()

        thread = threading.Thread(target=look, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def verdict(self) -> RankFailedError | None:
        """An error about the rank that hung in the last attempt, or about a repeated failure; None for neither."""
        attempts = [beat.attempt for beat in read_beats(self.directory)]
        return self.repeated or (self.verdicts.get(attempts[0]) if attempts else None)

    def look(self) -> None:
        """Looks at all ranks once, and acts."""
        now = time.monotonic()
        if now - self._last_look > _STOPPED_SECONDS:
            self._patient_until = now + self.timeout_seconds
        self._last_look = now
        beats = read_beats(self.directory)
        if not beats:
            return
        attempt = beats[0].attempt
        if self.repeated is not None:
            if attempt not in self._failures:
                # The agent has just begun one more attempt; only now a signal lets it end cleanly.
                os.kill(os.getpid(), signal.SIGTERM)
                self._failures[attempt] = _Failure(0, "ended")
            return
        if attempt in self._failed_at:
            self._after_failure(attempt, beats)
            return
        alive = [beat for beat in beats if process_state(beat.pid) != "X"]
        reports = [one for one in self._reports(attempt) if one.exit_code != ExitCode.INTERRUPTED]
        vanished = [beat for beat in beats if beat not in alive and beat.phase is not Phase.ENDED]
        ended_in_order = {one.rank for one in self._reports(attempt)}
        if reports or any(beat.rank not in ended_in_order for beat in vanished):
            silent = [beat for beat in alive if all(one.rank != beat.rank for one in reports)]
            # NCCL ends a process that has waited in vain, without a report.
            waited = all(beat.phase_age > 0.9 * self.timeout_seconds for beat in vanished)
            if waited and all(one.is_symptom for one in reports):
                self._blame(attempt, silent, beats)  # its peers do not know which rank they have waited for
            else:
                self._blame(attempt, [beat for beat in silent if beat.beat_age > _SURELY_FROZEN_SECONDS], beats)
            self._failed_at[attempt] = time.monotonic()
        elif self._is_over_time(alive):
            self._blame(attempt, alive, beats)
            self._failed_at[attempt] = 0.0  # no rank gets any more time

    def _reports(self, attempt: int) -> list[RankReport]:
        return read_reports(self.directory, attempt)

    def _is_over_time(self, alive: Sequence[Beat]) -> bool:
        limit = self.timeout_seconds
        if time.monotonic() < self._patient_until:
            return False
        return any(
            beat.beat_age > limit or (beat.phase is Phase.SYNCHRONISING and beat.phase_age > limit) for beat in alive
        )

    def _blame(self, attempt: int, suspects: Sequence[Beat], beats: Sequence[Beat]) -> None:
        if not suspects:
            return
        frozen = [beat for beat in suspects if beat.beat_age > min(_FROZEN_SECONDS, self.timeout_seconds / 2)]
        busy = [beat for beat in suspects if beat.phase is not Phase.SYNCHRONISING]
        # The rank that is behind comes first; at the same step, the one that has been there the longest.
        culprit = min(
            frozen or busy or suspects, key=lambda beat: (beat.step or 0, -max(beat.beat_age, beat.phase_age))
        )
        state = process_state(culprit.pid)
        frames: tuple[str, ...] = ()
        if culprit in frozen:
            seconds, how = culprit.beat_age, _STATES.get(state, "the process gives no sign of life")
        else:
            seconds, how = culprit.phase_age, "it runs, and does not get on"
            frames = frames_of(self.directory, culprit)
        others = "".join(
            f"\n  rank {beat.rank}: {beat.in_words}, for {beat.phase_age:.0f} s"
            for beat in beats
            if beat is not culprit
        )
        self.verdicts[attempt] = RankFailedError(
            f"rank {culprit.rank} on {platform.node()} (process {culprit.pid}) hangs: {culprit.in_words}, "
            f"for {seconds:.0f} s; {how}" + "".join(f"\n  at {frame}" for frame in frames) + others,
            exit_code=ExitCode.HUNG,
            help=f"ranks wait for each other at most dist_env.timeout_minutes={self.timeout_seconds / 60:g}; "
            "resumed, the run goes on from its last checkpoint",
        )

    def _after_failure(self, attempt: int, beats: Sequence[Beat]) -> None:
        if attempt not in self._failures:
            self._remember(attempt, beats)
        if self.repeated is None and time.monotonic() < self._failed_at[attempt] + _NOTICE_SECONDS:
            return
        for beat in beats:
            # A rank that is ending may be finishing its report to a service.
            if beat.phase not in (Phase.ENDING, Phase.ENDED) or beat.beat_age > _FROZEN_SECONDS:
                with contextlib.suppress(OSError):
                    os.kill(beat.pid, signal.SIGKILL)

    def _remember(self, attempt: int, beats: Sequence[Beat]) -> None:
        """Remembers how an attempt failed, and ends the job if the attempt before failed in the same way."""
        cause: AmcliError | RankReport | None = self.verdicts.get(attempt) or root_cause(self._reports(attempt))
        first_line = cause.message.splitlines()[0] if cause else "a rank was killed"
        kind = "hang" if attempt in self.verdicts else _ANY_NUMBER.sub("#", first_line)
        now = _Failure(max(beat.step for beat in beats), kind)
        before = self._failures.get(attempt - 1)
        self._failures[attempt] = now
        if attempt >= self.restarts:
            return
        if before is not None and now.kind == before.kind and now.step <= before.step:
            self.repeated = RankFailedError(
                f"the run failed twice in the same way, now at step {now.step}, and is not started again: {first_line}",
                exit_code=cause.exit_code if isinstance(cause, RankReport | RankFailedError) else ExitCode.INTERNAL,
                help="more of the same would not get further; resume the run once the reason is gone",
            )
        else:
            left = self.restarts - attempt
            self.say(f"failed at step {now.step}: {first_line}\nstarting again from the last checkpoint ({left} left)")
