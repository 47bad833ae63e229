"""Sources that have a name: the embedded text, and data sets on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubLocation:
    """A data set on the hub, which is streamed and never downloaded as a whole.

    Attributes:
        path: Repository of the data set.
        config: Its subset, such as `sample-10BT`.
        text_column: The column that holds the text.
        title_pattern: Regular expression of rows that begin a document, where a document is
            spread over many rows; `None` when every row is one.
    """

    path: str
    config: str | None = None
    text_column: str = "text"
    title_pattern: str | None = None

    @property
    def label(self) -> str:
        """Repository and subset, for lists."""
        return f"{self.path} {self.config or ''}".rstrip()


@dataclass(frozen=True)
class Preset:
    """A source with a name and its defaults.

    Attributes:
        name: What the user types.
        description: One line.
        tokenizer: Default tokenizer.
        val_share: Part of the tokens held out when the user names no number.
        max_tokens: Default size of the training split; `None` takes everything.
        hub: Where it lies on the hub; `None` for text inside the package.
    """

    name: str
    description: str
    tokenizer: str = "gpt2"
    val_share: float = 0.005
    max_tokens: int | None = 100_000_000
    hub: HubLocation | None = None


_WIKITEXT_TITLE = r" = [^=].*[^=] = \n?"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "shakespeare",
            "149 scenes of Shakespeare, 1 MB, inside the package: no network",
            tokenizer="bytes",
            val_share=0.07,
            max_tokens=None,
        ),
        Preset(
            "fineweb",
            "cleaned English web pages, sample of 10 B tokens",
            hub=HubLocation("HuggingFaceFW/fineweb", "sample-10BT"),
        ),
        Preset(
            "fineweb-edu",
            "educational English web pages, sample of 10 B tokens",
            hub=HubLocation("HuggingFaceFW/fineweb-edu", "sample-10BT"),
        ),
        Preset(
            "openwebtext",
            "web pages linked from Reddit, an open remake of GPT-2's data",
            hub=HubLocation("Skylion007/openwebtext"),
        ),
        Preset(
            "wikitext",
            "good articles of Wikipedia, 100 M tokens",
            hub=HubLocation("Salesforce/wikitext", "wikitext-103-raw-v1", title_pattern=_WIKITEXT_TITLE),
        ),
        Preset(
            "tinystories",
            "short stories in simple words, for small models",
            hub=HubLocation("roneneldan/TinyStories"),
        ),
        Preset("c4", "English part of the cleaned Common Crawl", hub=HubLocation("allenai/c4", "en")),
    )
}

# For files of the user's own.
LOCAL_FILES = Preset("files", "parquet, JSON lines, CSV and text files", val_share=0.05, max_tokens=None)
