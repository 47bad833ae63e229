"""What is wrong is shown where it was set: in a file, by an option, or by a default."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.engine.config import check_targets
from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import apply_overrides, from_parsed
from automodel_cli.engine.config.excerpt import add_excerpts
from automodel_cli.engine.config.load import load_config, with_defaults
from automodel_cli.engine.config.origin import DEFAULT
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields
from automodel_cli.engine.config.source_modules import Sources
from automodel_cli.engine.config.target_sections import TARGET_SECTIONS
from automodel_cli.engine.config.yaml_reader import parse_yaml
from automodel_cli.errors import AmcliError

OWN = [f"{owner.name}.{name}".lstrip(".") for owner in (General, *SECTIONS) for name in section_fields(owner)]
# Of the sections with a `_target_`, keys that their callables do not take.
OTHERS = [f"{section}.{name}" for section in TARGET_SECTIONS for name in ("unheard_of", "un.heard.of")]


@pytest.fixture(scope="module")
def sources():
    """What was read of torch once serves all keys."""
    return Sources(is_bounded=False)


@pytest.fixture
def problems_of(named_shards, sources, monkeypatch):
    """What is wrong with a configuration."""
    monkeypatch.setattr(check_targets, "Sources", lambda: sources)

    def check(config):
        with pytest.raises(AmcliError) as caught:
            checked(config)
        return caught.value.problems or (caught.value,)

    return check


def about(key, problems):
    """The problem that names a key, in full or as the last word."""
    leaf = key.rpartition(".")[2]
    return next(each for each in problems if key in each.message or f"`{leaf}`" in each.message)


def in_a_file(key, value):
    """The built-in configuration with one value of a file over it; and where its key and its value stand."""
    *sections, leaf = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    indent = 2 * len(sections)
    lines.append(f"{' ' * indent}{leaf}: {value}")
    Path("mine.yaml").write_text("\n".join(lines) + "\n")
    config = load_config(None).merged(from_parsed(parse_yaml("\n".join(lines), source="mine.yaml", kind="file")))
    return config, f"mine.yaml:{len(lines)}:{indent + 1}", f"mine.yaml:{len(lines)}:{indent + len(leaf) + 3}"


@pytest.mark.parametrize("key", OWN)
def test_a_wrong_value_is_shown_where_it_was_set(problems_of, key):
    """Line and column in a file, the option, or that it is the default; with a caret where there is a text."""
    by_file, _, value_at = in_a_file(key, "[1]")
    by_option = apply_overrides(load_config(None), [f"{key}=[1]"])
    by_default = load_config(None).with_value(tuple(key.split(".")), [1], DEFAULT)

    found = [about(key, problems_of(config)) for config in (by_file, by_option, by_default)]

    assert [each.where for each in found] == [value_at, f"--set {key}", "default"]
    for each in found:
        add_excerpts(each, ["config", "show", "--set", f"{key}=[1]"])
    assert found[0].excerpt.splitlines()[1].index("^") - len("      | ") == int(value_at.rpartition(":")[2]) - 1
    assert found[1].excerpt.startswith(f"      | --set {key}=[1]\n      |       ^")
    assert found[2].excerpt is None


@pytest.mark.parametrize("key", [*(f"{key}_" for key in OWN), *OTHERS])
def test_an_unknown_key_is_shown_where_it_was_set(problems_of, key):
    """Also where an option makes the sections around it."""
    first = key.replace("un.heard.of", "un")
    by_file, _, _ = in_a_file(key, "1")
    by_option = apply_overrides(load_config(None), [f"{key}=1"])
    depth = first.count(".")

    found = [about(first, problems_of(with_defaults(config))) for config in (by_file, by_option)]

    assert [each.where for each in found] == [f"mine.yaml:{depth + 1}:{2 * depth + 1}", f"--set {key}"]


@pytest.mark.parametrize(
    ("assignment", "help_"),
    [
        ("foo.bar=1", "the sections are"),
        ("modle.n_layer=2", "did you mean `model`?"),
        ("local_batch_size=3", "did you mean `step_scheduler.local_batch_size`?"),
        ("batch_size=3", "did you mean `step_scheduler.global_batch_size`?"),
        ("learning_rate=3", "did you mean `optimizer.lr`?"),
        ("optimizer.learning_rate=3", "did you mean `lr`?"),
        ("optimizer.wd=3", "did you mean `weight_decay`?"),
        ("step_scheduler.num_steps=3", "did you mean `max_steps`?"),
        ("model.hidden_size=3", "did you mean `n_embd`?"),
        ("model.n_layers=3", "did you mean `n_layer`?"),
        ("optimizer._target_=torhc.optim.AdamW", "did you mean `torch`?"),
        ("optimizer._target_=bitsandbytes.optim.Adam8bit", "pip install bitsandbytes"),
    ],
)
def test_an_option_that_names_nothing_is_shown_with_what_was_meant(problems_of, assignment, help_):
    """And with no line of a file that did not set it."""
    (found,) = problems_of(load_config(None, [assignment]))

    assert found.where == f"--set {assignment.partition('=')[0]}"
    assert help_ in found.help


@pytest.mark.parametrize(
    "assignment",
    [
        "step_scheduler.local_batch_size=3",
        "step_scheduler.global_batch_size=24",
        "model.n_positions=64",
        "model.n_head=3",
        "lr_scheduler.lr_warmup_steps=700",
        "lr_scheduler.min_lr=1",
        "optimizer.lr=1e-5",
    ],
)
def test_of_values_that_do_not_go_together_the_option_is_blamed(problems_of, assignment):
    """Not the file that it was laid over."""
    found = problems_of(load_config(None, [assignment]))

    assert {each.where for each in found} == {f"--set {assignment.partition('=')[0]}"}
