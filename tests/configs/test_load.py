"""The loader refuses what it should, in one line that says what to do."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field

from configs import Config, ConfigError, cli, config_hash, dump, load


class Alpha(Config):
    name: Literal["alpha"] = "alpha"
    lr: float = Field(0.1, description="learning rate")


class Beta(Config):
    name: Literal["beta"] = "beta"
    temperature: float = 0.1


class Inner(Config):
    more: Annotated[Alpha | Beta, Field(discriminator="name")]


class Whole(Config):
    count: int = 3
    flag: bool = False
    time: str = "0"
    sizes: tuple[int, ...] = (1, 2)
    part: Alpha = Alpha()
    method: Annotated[Alpha | Beta, Field(discriminator="name")] = Alpha()
    nested: tuple[Inner, ...] = ()


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("part: {lr: 1e-3}", 1e-3),  # PyYAML's own loader reads a text
        ("part: {lr: 3}", 3.0),
        ("part: {lr: .5}", 0.5),
        ("part: {lr: -2.5E+3}", -2500.0),
    ],
)
def test_numbers(file, text, expected):
    assert load(file(text), schema=Whole).part.lr == expected


def test_a_time_stays_text(file):
    assert load(file("time: 12:30:00"), schema=Whole).time == "12:30:00"


@pytest.mark.parametrize(
    ("text", "field", "mend"),
    [
        ("conut: 3", "conut", "did you mean 'count'?"),
        ("part: {rl: 3}", "part.rl", "did you mean 'lr'?"),
        ("method: {name: beta, temprature: 1}", "method.temprature", "did you mean 'temperature'?"),
        ("count: 3\ncount: 4", "count", "line 2: the key 'count' appears twice; keep one"),
        ("count: 010", "count", "without quotes or leading zeros"),
        ("count: '3'", "count", "without quotes or leading zeros"),
        ("count: 12:30:00", "count", "write a plain number"),
        ("count: 3.0", "count", "valid integer"),
        ("flag: no", "flag", "write true or false"),
        ("method: {lr: 3}", "method.name", "missing; write one of alpha, beta"),
        (
            "method: {name: bete}",
            "method.name",
            "unknown 'bete'; did you mean 'beta'? write one of alpha, beta",
        ),
        ("method: {name: 3}", "method.name", "unknown '3'; write one of alpha, beta"),
        ("nested: [{more: {name: }}]", "nested.0.more.name", "write one of alpha, beta"),
        ("flag: 1", "flag", "valid boolean"),
        ("time: 5", "time", "put it in quotes"),
        ("sizes: [1, x]", "sizes.1", "valid integer"),
        ("method: {name: gamma}", "method.name", "unknown 'gamma'; write one of alpha, beta"),
        ("part: 3", "part", "found the number 3"),
        ("part: {lr: .inf}", "part.lr", "valid number"),
        ("[1", "run.yaml", "line 1"),
        ("- 1", "run.yaml", "found a list"),
    ],
)
def test_refusals_name_field_and_mend_in_one_line(file, text, field, mend):
    path = file(text)
    with pytest.raises(ConfigError) as error:
        load(path, schema=Whole)
    message = str(error.value)
    assert str(path) in message
    assert field in message
    assert mend in message
    assert "\n" not in message


class Row(Config):
    kind: str
    seed: int | bool | str = 0


class Rows(Config):
    rows: tuple[Row, ...]

    @pydantic.model_validator(mode="after")
    def _some(self):
        if not self.rows:
            raise ValueError("rows: give one or more")
        return self


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: [{knid: a}]", "rows.0.knid: unknown key; did you mean 'kind'? (known: kind, seed)"),
        (
            "rows: [{kind: a, seed: 0.5}]",
            "rows.0.seed: input should be a valid integer, found the number 0.5",
        ),
        (
            "rows: [{knid: a, seed: 0.5}]",
            "rows.0.seed: input should be a valid integer, found the number 0.5 (and 1 more)",
        ),
        ("rows: []", "rows: give one or more"),
    ],
)
def test_one_mistake_is_one(file, text, message):
    path = file(text)
    with pytest.raises(ConfigError) as error:
        load(path, schema=Rows)
    assert str(error.value) == f"{path}: {message}"


def test_missing_file_suggests_its_neighbour(file):
    path = file("count: 1")
    with pytest.raises(ConfigError, match=r"rum\.yaml: no such file; did you mean .*run\.yaml"):
        load(path.with_name("rum.yaml"), schema=Whole)


def test_overrides(file):
    path = file("part: {lr: 1}")
    config = load(path, ["part.lr=2e-2", "flag=true", "sizes=[4,5]", "method.name=beta"], schema=Whole)
    assert config == Whole(part=Alpha(lr=0.02), flag=True, sizes=(4, 5), method=Beta())


@pytest.mark.parametrize("override", ["count", "=3", "count.x=1", "nothing=1", "flag=perhaps"])
def test_bad_overrides(file, override):
    with pytest.raises(ConfigError):
        load(file("count: 3"), [override], schema=Whole)


def test_base_merges_mappings_and_replaces_lists(file):
    file("count: 1\npart: {lr: 5}\nsizes: [1, 2, 3]", "base.yaml")
    config = load(file("base: base.yaml\nsizes: [9]\nflag: true"), schema=Whole)
    assert config == Whole(count=1, part=Alpha(lr=5), sizes=(9,), flag=True)


def test_base_circle(file):
    file("base: run.yaml", "base.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load(file("base: base.yaml"), schema=Whole)


@pytest.mark.parametrize(
    "text", ["1e-3", "no", "true", "12:30:00", "010", "null", "~", "1.5", "", "a: b", "#x"]
)
def test_dump_reads_back(file, text):
    config = Whole(time=text, part=Alpha(lr=1e-9))
    assert load(file(dump(config)), schema=Whole) == config


def test_hash_follows_content():
    assert config_hash(Whole()) == config_hash(Whole(count=3))
    assert config_hash(Whole()) != config_hash(Whole(count=4))
    assert config_hash(Whole(count=4), {"count"}) == config_hash(Whole(), {"count"})
    assert config_hash(Whole(part=Alpha(lr=9)), {"part": {"lr"}}) == config_hash(Whole(), {"part": {"lr"}})


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Whole().count = 4


@pytest.mark.parametrize(("error", "code"), [(ConfigError("x.yaml: y: do z"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(error, code, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def test_describe_lists_nested_fields():
    text = cli.describe(Whole)
    assert "part.lr" in text
    assert "learning rate" in text
    assert "method.temperature" in text


def test_describe_says_what_is_an_alternative_and_nothing_twice():
    class Gamma(Alpha):
        """The third."""

        more: tuple[bool | None, ...] = (True, None)

    class Deep(Config):
        deeper: Alpha
        """Here."""

    class Everything(Config):
        method: Annotated[Beta | Gamma, Field(discriminator="name")] = Beta()
        methods: tuple[Beta, ...] = (Beta(), Beta())
        deep: Deep

    lines = cli.describe(Everything).splitlines()
    assert [line.split()[0] for line in lines] == [
        "method",
        "method.name=beta",
        "method.temperature",
        "method.name=alpha",
        "method.lr",
        "method.more",
        "methods",
        "deep",
        "deep.deeper",
    ]
    assert lines[3].endswith("The third.")
    assert lines[5].endswith("[[true, null]]")
    assert lines[6].split(maxsplit=1)[1] == "[[beta, beta]]  Its fields are those of method."
    assert lines[8].endswith("(required) Here. Its fields are those of method.")
