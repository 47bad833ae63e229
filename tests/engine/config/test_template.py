"""What `amcli config init` writes: the preset's values, and every key of ours with its meaning and default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from automodel_cli.engine.config.check import checked
from automodel_cli.engine.config.config import Config, from_parsed
from automodel_cli.engine.config.emit import flat
from automodel_cli.engine.config.load import with_defaults
from automodel_cli.engine.config.sections import SECTIONS, General, is_required, section_fields
from automodel_cli.engine.config.template import PRESETS, preset_config, template, write_template
from automodel_cli.engine.config.yaml_reader import parse_yaml, read_yaml
from automodel_cli.errors import UsageError

EXAMPLES = Path(__file__).parents[3] / "examples"


def read(text: str) -> Config:
    """The configuration that a text is, with defaults."""
    return with_defaults(from_parsed(parse_yaml(text, source="my.yaml", kind="file")))


def shown_fields(section) -> dict:
    """The keys of a section that are not left out while nobody sets them."""
    return {name: item for name, item in section_fields(section).items() if not item.metadata["quiet"]}


def values_of(config: Config) -> dict:
    return {key: value for key, value, _ in flat(config)}


@pytest.mark.parametrize("preset", PRESETS)
def test_reading_it_gives_the_values_of_the_preset(preset):
    """Nothing is added, lost or changed by writing it down with comments."""
    assert values_of(read(template(preset))) == values_of(with_defaults(preset_config(preset)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.usefixtures("named_shards")
def test_it_passes_every_check(preset):
    """A file to start from is sound once its data is prepared."""
    assert checked(read(template(preset))).step_scheduler.max_steps > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_key_of_ours_stands_in_it_below_its_meaning(preset):
    """Set, or commented out at its default."""
    text = template(preset)
    unwrapped = re.sub(r"\n *# ", " ", text)

    for section in (General, *SECTIONS):
        for name, item in shown_fields(section).items():
            assert re.search(rf"^ *#?{name}: ", text, re.MULTILINE), name
            assert item.metadata["meaning"].partition(". ")[0] in unwrapped, name


@pytest.mark.parametrize("preset", PRESETS)
def test_a_key_that_is_commented_in_has_its_default(preset):
    """Taking the # away changes no value: what is commented out is how it would be anyway."""
    text = re.sub(r"^( *)#(\w+: )", r"\1\2", template(preset), flags=re.MULTILINE)

    config = from_parsed(parse_yaml(text, source="my.yaml", kind="file"))

    for section in (General, *SECTIONS):
        for name, item in shown_fields(section).items():
            path = f"{section.name}.{name}" if section.name else name
            if is_required(item) or preset_config(preset).has(path):
                continue
            assert config.has(path)
            assert config.get(path) == item.default


@pytest.mark.parametrize("preset", PRESETS)
def test_its_lines_fit_in_120_columns(preset):
    """As every text of ours."""
    assert max(map(len, template(preset).splitlines())) <= 120


def test_the_file_that_it_names_is_the_one_that_is_written(tmp_path):
    """Its first lines can be pasted into a shell."""
    path = tmp_path / "deep.yaml"

    write_template(path, "quickstart")

    assert f"amcli pretrain -c {path}" in path.read_text()


def test_a_file_that_exists_is_kept(tmp_path):
    """Unless told otherwise: it may hold somebody's work."""
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")

    with pytest.raises(UsageError, match="exists"):
        write_template(path, "quickstart")

    assert path.read_text() == "seed: 1\n"
    write_template(path, "quickstart", overwrite=True)
    assert "model:" in path.read_text()


def test_a_directory_that_is_not_there_is_an_error_of_the_user(tmp_path):
    """No traceback, and the place is named."""
    with pytest.raises(UsageError, match="cannot write") as caught:
        write_template(tmp_path / "no" / "a.yaml", "quickstart")

    assert caught.value.where == str(tmp_path / "no" / "a.yaml")


def test_an_unknown_preset_names_the_nearest():
    """As for any mistyped name."""
    with pytest.raises(UsageError) as caught:
        template("nanogpt-124")

    assert caught.value.help == "did you mean `nanogpt-124m`?"


def test_the_presets_are_the_examples():
    """One set of numbers for the 124M model, whether one copies the example or writes a new file."""
    assert preset_config("nanogpt-124m").values == read_yaml(EXAMPLES / "fineweb.yaml").value
    assert preset_config("quickstart").values == read_yaml(EXAMPLES / "quickstart.yaml").value
