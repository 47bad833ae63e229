"""Which documents are held out for validation: whole ones, evenly over the corpus.

The choice depends on the lengths of the documents before, so it is the same at every run and for
any batch size, and a document is in exactly one split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Documents looked at together: one in a window is held out at the usual shares.
_WINDOW = 256


@dataclass(frozen=True)
class Seen:
    """What came before.

    Attributes:
        held_out: Tokens in validation.
        trained_on: Tokens in training.
    """

    num_documents: int = 0
    held_out: int = 0
    trained_on: int = 0


@dataclass(frozen=True)
class HoldOut:
    """A rule that keeps the validation split at a share of all tokens.

    Attributes:
        share: Share to hold out while `val_tokens` is not given.
        val_tokens: Tokens to hold out in all, or `None`.
        max_tokens: Tokens that the training split will have, or `None` for all.
    """

    share: float
    val_tokens: int | None
    max_tokens: int | None

    def choose(self, lengths: npt.NDArray[np.int64], seen: Seen, corpus_tokens: float | None) -> npt.NDArray[np.bool_]:
        """Whether each document goes to validation; fewer answers than documents when no more are needed.

        A document's own length is not asked, or short documents would be preferred. The last
        document of training may be longer than what its budget leaves.

        Args:
            lengths: Tokens of the next documents, shape (n,).
            seen: What came before them.
            corpus_tokens: Estimated length of the whole corpus; `None` when it is not known.
        """
        taken = np.zeros(len(lengths), dtype=np.bool_)
        share = self._share(corpus_tokens)
        at = 0
        while at < len(lengths) and not self.is_satisfied(seen):
            if self.val_tokens is not None and seen.held_out >= self.val_tokens:
                count, holds = self._until(lengths[at:], seen.trained_on, self.max_tokens), False
            elif self.max_tokens is not None and seen.trained_on >= self.max_tokens:
                count, holds = self._until(lengths[at:], seen.held_out, self.val_tokens), True
            else:
                count = self._up_to_next(lengths[at : at + _WINDOW], seen, share)
                holds = count == 0
                count = max(count, 1)
            tokens = int(lengths[at : at + count].sum())
            taken[at : at + count] = holds
            at += count
            seen = Seen(
                seen.num_documents + count,
                seen.held_out + tokens * holds,
                seen.trained_on + tokens * (not holds),
            )
        return taken[:at]

    @staticmethod
    def _until(lengths: npt.NDArray[np.int64], tokens: int, limit: int | None) -> int:
        """How many documents are needed to come from `tokens` to `limit`."""
        if limit is None:
            return len(lengths)
        return min(len(lengths), 1 + int(np.searchsorted(tokens + np.cumsum(lengths), limit)))

    def _up_to_next(self, lengths: npt.NDArray[np.int64], seen: Seen, share: float) -> int:
        """How many documents go to training before the next one that is held out, or the end of the budget."""
        trained_on = seen.trained_on + np.concatenate(([0], np.cumsum(lengths)[:-1]))
        num_documents = seen.num_documents + np.arange(len(lengths))
        expected = (seen.held_out + trained_on) / np.maximum(num_documents, 1)
        # The middle of the expected document is compared with the share, not its beginning: the
        # held-out documents then lie in the middle of their stretches and the second is not always one.
        ends = seen.held_out + expected / 2 < share * (seen.held_out + trained_on + expected)
        # There is nothing to hold out from before the first document.
        ends &= num_documents > 0
        if self.max_tokens is not None:
            # A document behind the budget is looked at again, by the rule that holds there.
            ends |= trained_on >= self.max_tokens
        return int(np.argmax(ends)) if ends.any() else len(lengths)

    def _share(self, corpus_tokens: float | None) -> float:
        if self.val_tokens is None:
            return self.share
        wanted = [] if self.max_tokens is None else [float(self.max_tokens + self.val_tokens)]
        whole = [] if corpus_tokens is None else [corpus_tokens]
        # A budget larger than the corpus must not thin out the validation split.
        return self.val_tokens / max(min(wanted + whole, default=self.val_tokens / self.share), 1.0)

    def is_satisfied(self, seen: Seen) -> bool:
        """Whether no further document is needed."""
        if self.max_tokens is None or seen.trained_on < self.max_tokens:
            return False
        return self.val_tokens is None or seen.held_out >= self.val_tokens
