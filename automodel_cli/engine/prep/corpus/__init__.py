"""Sources of documents: files of every kind, standard input, the embedded text and the hub."""
