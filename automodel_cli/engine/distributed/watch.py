"""Watches the ranks of this machine: names the one that hangs, ends what cannot go on, stops going round in circles.

Runs as a thread beside torchrun's agent, which only sees whether processes live. A rank hangs if it gave no sign of
life for the time limit of the messages, or if others have waited for it that long. Then all are killed, and the
agent starts them again where restarts are left. Where a rank has failed, its peers get a few seconds to notice,
since nothing that they could still save is whole without it. No torch.
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
# Of a rank whose beats have stopped this long, nothing else than that is to be said; at most half the time limit.
_FROZEN_SECONDS = 5.0
# How long the peers of a failed rank may take to notice by themselves.
_NOTICE_SECONDS = 5.0
# A launcher that was not looked after this long was stopped itself, and its ranks with it, as Ctrl-Z does.
_STOPPED_SECONDS = 10.0
# Numbers and addresses differ from one failure to the next of its kind.
_ANY_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
# Where a peer was killed from outside, a pause of this length is no accident of a busy machine.
_SURELY_FROZEN_SECONDS = 30.0
_STATES = {
    "T": "the process is stopped, as SIGSTOP does",
    "t": "the process is stopped by a debugger",
    "D": "the process is stuck in the kernel: a disk or a device does not answer",
}


@dataclass(frozen=True)
class _Failure:
    """How an attempt ended: at which step, and how that is told from another end."""

    step: int
    kind: str


@dataclass
class Watch:
    """What is known about the ranks of this machine.

    Args:
        directory: Where they leave their beats and reports.
        timeout_seconds: How long a rank may let the others wait.
        restarts: How often the group may be started again.
        say: Tells the user why it is.
    """

    directory: Path
    timeout_seconds: float
    restarts: int
    say: Callable[[str], None]
    verdicts: dict[int, RankFailedError] = field(default_factory=dict)
    circle: RankFailedError | None = None
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
                # A rank that is just being started or has just ended may take its files away under the eyes.
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
        """The rank that hung in the last attempt, if one did; or that the same failure came again."""
        attempts = [beat.attempt for beat in read_beats(self.directory)]
        return self.circle or (self.verdicts.get(attempts[0]) if attempts else None)

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
        if self.circle is not None:
            if attempt not in self._failures:
                # The agent has just begun one more attempt: only now it is at a place where it ends in order.
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
                self._blame(attempt, silent, beats)  # its peers do not know for whom they have waited
            else:
                self._blame(attempt, [beat for beat in silent if beat.beat_age > _SURELY_FROZEN_SECONDS], beats)
            self._failed_at[attempt] = time.monotonic()
        elif self._is_over_time(alive):
            self._blame(attempt, alive, beats)
            self._failed_at[attempt] = 0.0  # nobody gets any more time

    def _reports(self, attempt: int) -> list[RankReport]:
        return read_reports(self.directory, attempt)

    def _is_over_time(self, alive: Sequence[Beat]) -> bool:
        limit = self.timeout_seconds
        if time.monotonic() < self._patient_until:
            return False
        return any(beat.beat_age > limit or (beat.phase is Phase.AGREEING and beat.phase_age > limit) for beat in alive)

    def _blame(self, attempt: int, suspects: Sequence[Beat], beats: Sequence[Beat]) -> None:
        if not suspects:
            return
        frozen = [beat for beat in suspects if beat.beat_age > min(_FROZEN_SECONDS, self.timeout_seconds / 2)]
        busy = [beat for beat in suspects if beat.phase is not Phase.AGREEING]
        # Who is behind comes first; of those at the same step, who has been there the longest.
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
        if self.circle is None and time.monotonic() < self._failed_at[attempt] + _NOTICE_SECONDS:
            return
        for beat in beats:
            # Who is on the way out may be telling a service of the end.
            if beat.phase not in (Phase.ENDING, Phase.ENDED) or beat.beat_age > _FROZEN_SECONDS:
                with contextlib.suppress(OSError):
                    os.kill(beat.pid, signal.SIGKILL)

    def _remember(self, attempt: int, beats: Sequence[Beat]) -> None:
        """Keeps how an attempt failed, and ends the job if that is how the one before did."""
        cause: AmcliError | RankReport | None = self.verdicts.get(attempt) or root_cause(self._reports(attempt))
        first_line = cause.message.splitlines()[0] if cause else "a rank was killed"
        kind = "hang" if attempt in self.verdicts else _ANY_NUMBER.sub("#", first_line)
        now = _Failure(max(beat.step for beat in beats), kind)
        before = self._failures.get(attempt - 1)
        self._failures[attempt] = now
        if attempt >= self.restarts:
            return
        if before is not None and now.kind == before.kind and now.step <= before.step:
            self.circle = RankFailedError(
                f"the run failed twice in the same way, now at step {now.step}, and is not started again: {first_line}",
                exit_code=cause.exit_code if isinstance(cause, RankReport | RankFailedError) else ExitCode.INTERNAL,
                help="more of the same would not get further; resume the run once the reason is gone",
            )
        else:
            left = self.restarts - attempt
            self.say(f"failed at step {now.step}: {first_line}\nstarting again from the last checkpoint ({left} left)")
