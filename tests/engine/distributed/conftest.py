"""The scripts that the tests start as ranks import each other, as scripts do; nothing in them is a test."""

collect_ignore = ["elastic_ranks.py", "parity_ranks.py"]
