"""What trained models are used for: export to and import from Hugging Face directories, and sampling text."""
