"""amcli: pre-train language models from raw text to a checkpoint that every Hugging Face tool can load."""

import os
import signal

__version__ = "0.1.0"

if "_AMCLI_COMPLETE" in os.environ:
    # The shell asks what can follow: Ctrl-C ends that without a word, while modules are imported, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
