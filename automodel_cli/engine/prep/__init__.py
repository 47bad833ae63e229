"""From text to token shards: sources, tokenizers and presets."""
