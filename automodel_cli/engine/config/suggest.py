"""Suggestions: the nearest right name for a mistyped one or for one of another tool, and commands to paste."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path, PurePath

from automodel_cli.errors import ConfigError

# Default directory in which runs save, and in which commands look for a run.
DEFAULT_ROOT = Path("checkpoints")

# What the tools of this field call the same thing.
_SYNONYMS = (
    ("lr", "learning_rate", "max_lr", "base_lr", "peak_lr", "lr_max"),
    ("weight_decay", "wd", "decay"),
    ("betas", "adam_betas", "beta1", "beta2", "adam_beta1", "adam_beta2"),
    ("eps", "epsilon", "adam_epsilon", "adam_eps"),
    ("global_batch_size", "batch_size", "bs", "train_batch_size", "total_batch_size"),
    ("local_batch_size", "micro_batch_size", "mbs", "device_batch_size", "per_device_train_batch_size", "batch_size"),
    ("max_steps", "num_steps", "steps", "train_steps", "max_iters", "num_iterations", "epochs", "num_epochs"),
    ("val_every_steps", "eval_every", "val_every", "eval_steps", "eval_interval", "val_check_interval", "val_interval"),
    ("val_batches", "eval_iters", "limit_val_batches", "eval_batches"),
    ("ckpt_every_steps", "save_every", "save_steps", "save_interval", "checkpoint_every", "ckpt_interval"),
    ("lr_warmup_steps", "warmup", "warmup_steps", "warmup_iters", "num_warmup_steps", "lr_warmup_iters"),
    ("lr_decay_steps", "decay_steps", "lr_decay_iters"),
    ("lr_decay_style", "lr_scheduler_type", "schedule", "decay_style"),
    ("max_norm", "grad_clip", "clip", "gradient_clip_val", "max_grad_norm", "clip_grad"),
    ("checkpoint_dir", "output_dir", "out_dir", "save_path", "ckpt_dir", "log_dir", "save_dir"),
    ("max_recent_checkpoints", "save_total_limit", "keep_last", "save_top_k"),
    ("num_workers", "dataloader_num_workers", "workers"),
    ("seq_len", "sequence_length", "seq_length", "max_seq_len", "block_size", "context_length", "max_length"),
    ("n_positions", "max_position_embeddings", "block_size", "context_length", "seq_len", "max_seq_len"),
    ("n_layer", "num_hidden_layers", "num_layers", "layers", "depth"),
    ("n_head", "num_attention_heads", "num_heads", "heads"),
    ("n_embd", "hidden_size", "d_model", "dim", "width", "embed_dim"),
    ("n_inner", "intermediate_size", "d_ff", "ffn_dim", "mlp_dim"),
    ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv"),
    ("vocab_size", "vocab", "padded_vocab_size"),
    ("precision", "dtype", "mixed_precision", "bf16", "fp16", "amp"),
    ("dataset", "data", "train_dataset", "train_data", "training_dataset"),
    ("validation_dataset", "val_dataset", "eval_dataset", "val_data", "valid_dataset"),
    ("loss_fn", "loss", "criterion"),
    ("lr_scheduler", "scheduler"),
    ("step_scheduler", "trainer", "training"),
    ("file_pattern", "data_path", "path", "paths", "data_dir", "files"),
)
# So much alike, it is a slip of the hand, and no other tool's name.
_SURE = 0.88
_SUFFIXES = (".yaml", ".yml")
_LISTED = 8


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate that `name` was most likely meant to be, or None if none is alike by `cutoff` of 1.

    >>> nearest("n_layers", ["n_layer", "n_head"]), nearest("learning_rate", ["betas", "lr"])
    ('n_layer', 'lr')
    >>> nearest("ste", ["set"]), nearest("plot", ["import"])
    ('set', None)
    """
    known = list(candidates)
    spelled = difflib.get_close_matches(name, known, n=1, cutoff=max(cutoff, _SURE))
    meant = [other for group in _SYNONYMS if name.lower() in group for other in group if other in known]
    if spelled or meant:
        return (spelled or meant)[0]
    for match in difflib.get_close_matches(name, known, n=3, cutoff=cutoff):
        # Many pairs that have 60 % in common only share a few letters.
        is_close = difflib.SequenceMatcher(None, match, name).ratio() >= 0.7
        if is_close or sorted(match) == sorted(name) or match in name or name in match:
            return match
    return None


def hint(name: str, candidates: Iterable[str], *, noun: str = "keys") -> str:
    """A help line: the nearest name if there is one, else the names that exist."""
    names = sorted(candidates)
    match = nearest(name, names)
    if match:
        return f"did you mean `{match}`?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"the {noun} are: {shown}" if names else f"there are no {noun} here"


def command(*words: object) -> str:
    """A command line of amcli for a message; every one that holds a name or a value is made here.

    >>> command("sample", PurePath("my runs"), "--seed", 3)
    "amcli sample 'my runs' --seed 3"
    """
    return " ".join(["amcli", *map(quoted, words)])


def on_run(name: str, root: Path, *words: object) -> str:
    """The command line of `amcli name` about the run in `root`, which is named unless it is the default.

    >>> on_run("resume", Path("checkpoints")), on_run("resume", Path("my runs"))
    ('amcli resume', "amcli resume 'my runs'")
    """
    return command(name, *([root] if root != DEFAULT_ROOT else []), *words)


def quoted(word: object) -> str:
    r"""A word as a shell reads it back, whatever it holds; a path is never taken for an option.

    >>> print(quoted("$HOME"), quoted(PurePath("-runs")), quoted("two\nlines"))
    '$HOME' ./-runs $'two\x0alines'
    """
    text = f"./{word}" if isinstance(word, PurePath) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    # A control character could steer the terminal, and bytes that are no text cannot be printed.
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def no_configuration(path: Path, error: OSError) -> ConfigError:
    """The error about a path that cannot be read as a file.

    Args:
        path: As the user gave it.
        error: What the file system said.
    """
    if path.is_dir():
        message = "this is a directory, and neither a checkpoint (it has no config.yaml) nor a run that saved one"
        return ConfigError(message, where=str(path), help=_files_in(path))
    if not path.exists():
        return ConfigError("there is no such file", where=str(path), help=_instead_of(path))
    return ConfigError(f"cannot read the configuration: {error.strerror}", where=str(path))


def _instead_of(path: Path) -> str:
    """The most similar name beside it or in `examples`, else the files of the nearest directory."""
    if path.suffix not in _SUFFIXES and path.with_name(f"{path.name}.yaml").is_file():
        return f"did you mean {path}.yaml?"
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    # A slip in a directory's name: the file itself may be in its neighbour.
    around = [directory, Path("examples"), *(each for each in _entries(directory) if each.is_dir())]
    names = {file.name: file for each in reversed(around) for file in _configurations(each)}
    match = nearest(path.name, names)
    return f"did you mean {_short(names[match])}?" if match else _files_in(directory)


def _files_in(directory: Path) -> str:
    names = [str(_short(file)) for file in _configurations(directory)]
    where = f"in {_short(directory)}"
    if not names:
        return f"there are no YAML files {where}; `amcli config init my.yaml` writes one"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"YAML files {where}: {', '.join(names[:_LISTED])}{more}"


def _configurations(directory: Path) -> list[Path]:
    return [file for file in _entries(directory) if file.suffix in _SUFFIXES and file.is_file()]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _short(path: Path) -> Path:
    """Relative to the working directory, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
