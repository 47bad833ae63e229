"""Which documents are held out for validation: whole ones, spread evenly over the corpus.

The choice depends on the lengths of the documents before, so it is the same at every run and for
any batch size, and a document is in exactly one split.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    def takes(self, num_documents: int, held_out: int, trained_on: int, corpus_tokens: float | None) -> bool:
        """Whether the next document goes to validation.

        Its own length is not asked, or short documents would be preferred.

        Args:
            num_documents: Documents seen so far.
            held_out: Tokens in validation so far.
            trained_on: Tokens in training so far.
            corpus_tokens: Estimated length of the whole corpus; `None` when it is not known.
        """
        if num_documents == 0 or (self.val_tokens is not None and held_out >= self.val_tokens):
            return False
        if self.max_tokens is not None and trained_on >= self.max_tokens:
            return self.val_tokens is not None
        expected = (held_out + trained_on) / num_documents
        # The middle of the expected document is compared with the share, not its beginning: the
        # held-out documents then lie in the middle of their stretches and the second is not always one.
        return held_out + expected / 2 < self._share(corpus_tokens) * (held_out + trained_on + expected)

    def _share(self, corpus_tokens: float | None) -> float:
        if self.val_tokens is None:
            return self.share
        wanted = [] if self.max_tokens is None else [float(self.max_tokens + self.val_tokens)]
        whole = [] if corpus_tokens is None else [corpus_tokens]
        # A budget larger than the corpus must not thin out the validation split.
        return self.val_tokens / max(min(wanted + whole, default=self.val_tokens / self.share), 1.0)

    def is_satisfied(self, held_out: int, trained_on: int) -> bool:
        """Whether no further document is needed."""
        if self.max_tokens is None or trained_on < self.max_tokens:
            return False
        return self.val_tokens is None or held_out >= self.val_tokens
