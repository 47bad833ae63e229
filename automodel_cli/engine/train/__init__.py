"""One training run: `recipe.py` composes it, `loop.py` runs it, `state.py` says what survives it."""
