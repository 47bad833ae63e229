"""Models to and from the directories that Hugging Face tools read."""
