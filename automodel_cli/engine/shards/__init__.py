"""The format of token shards: headers, the BOS index, the manifest, and the writer."""
