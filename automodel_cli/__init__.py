"""amcli: pre-train language models from raw text to a checkpoint that every Hugging Face tool can load."""

__version__ = "0.1.0"
