"""Whether model and data fit each other; asked once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from automodel_cli.engine.config.check import Settings
from automodel_cli.engine.config.config import TARGET, Config
from automodel_cli.engine.config.file_pattern import vocabulary_error
from automodel_cli.engine.config.origin import KeyPath, dotted
from automodel_cli.engine.config.validation_sets import validation_sets
from automodel_cli.engine.data.collate import DataSection
from automodel_cli.engine.models.head import Head
from automodel_cli.engine.models.sizes import positions_of, vocab_size_of
from automodel_cli.engine.protocols import MapDataset
from automodel_cli.errors import DataError


def check_fit(
    config: Config, model: nn.Module, dataset: MapDataset, validation: Mapping[str, MapDataset]
) -> int | None:
    """The model's vocabulary size, after checking that every dataset fits the model.

    A model or dataset that does not state a number (a user's own) is not checked for it.

    Raises:
        DataError: A dataset holds token ids beyond the vocabulary, or samples beyond the positions.
    """
    vocab_size, positions = vocab_size_of(model), positions_of(model)
    paths: dict[KeyPath, MapDataset] = {("dataset",): dataset}
    paths |= {path: validation[name] for name, path in validation_sets(config).items()}
    for path, dataset in paths.items():
        name = dotted(path)
        largest = getattr(dataset, "max_token_id", None)
        if vocab_size is not None and largest is not None and largest >= vocab_size:
            raise vocabulary_error(name, largest, vocab_size, str(config.origin(path)))
        length = getattr(dataset, "seq_len", None)
        if positions is not None and length is not None and length > positions:
            raise DataError(
                f"{name} gives samples of {length} tokens, but the model has {positions} positions",
                where=str(config.origin((*path, "seq_len"))),
                help=f"a seq_len up to {positions} would work",
            )
    return vocab_size


def data_sections(config: Config, settings: Settings, model: nn.Module) -> dict[str, DataSection]:
    """What is known of each dataset before a sample is read, by its key."""
    return {
        key: DataSection(key, str(config.origin((*path, TARGET))), settings.general.shift_labels, positions_of(model))
        for path in (("dataset",), *validation_sets(config).values())
        if (key := dotted(path))
    }


def vocab_size_by_layers(model: nn.Module, head: Head | None) -> int | None:
    """Ids of a model that does not state them: rows of an embedding, if the head has as many; None for any other."""
    rows = {layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)}
    return head.vocab_size if head is not None and head.vocab_size in rows else None
