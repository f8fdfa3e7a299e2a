"""Reading a config: what it may say, and every fault at once with its place."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import ConfigDict, Field, TypeAdapter

from visionlab.config.load import ConfigError, load, show
from visionlab.config.part import From, Part, Section


class SimCLR:
    """Contrast views of an image.

    Args:
        temperature: of the softmax.
    """

    def __init__(self, encoder: str, *, temperature: float = 0.1, sizes: tuple[int, int] = (32, 32)) -> None:
        self.encoder, self.temperature, self.sizes = encoder, temperature, sizes


class Jigsaw:
    def __init__(self, encoder: str, *, grid: Literal[2, 3] = 3, colors: bool = True) -> None:
        self.grid, self.colors = grid, colors


class Backbone:
    def __init__(
        self,
        *,
        name: str = "resnet50",
        norm: Literal["train", "frozen"] = "train",
        stages: list[int] = [1, 2],  # noqa: B006
        anchors: list[list[float]] | None = None,
        options: dict[str, int | float | bool | str] = {},  # noqa: B006
    ) -> None:
        self.settings = {"name": name, "norm": norm, "stages": stages, "anchors": anchors, "options": options}


def sgd(parameters: list, *, lr: float, momentum: float = 0.9) -> tuple:
    """Stochastic gradient descent.

    Args:
        lr: the learning rate.
    """
    return parameters, lr, momentum


def adamw(parameters: list, *, lr: float, eps: float | None = None) -> tuple:
    """Adam with decoupled weight decay."""
    return parameters, lr, eps


class Lab(Section):
    model_config = ConfigDict(use_attribute_docstrings=True)

    task: Literal["lab"]
    steps: Annotated[int, Field(gt=0)]
    """How long."""
    warmup: int = 0
    weights: str | None = None
    limit: int | Literal["all"] = "all"
    pretext: Annotated[Part, From({"simclr": SimCLR, "jigsaw": Jigsaw})]
    backbone: Annotated[Part, From(Backbone)] = From(Backbone).default()
    optimizer: Annotated[Part, From({"sgd": sgd, "adamw": adamw})]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.warmup > self.steps:
            yield "warmup", f"no end, expected at most steps ({self.steps}), got {self.warmup}"
        if self.weights and self.backbone.arguments()["norm"] != "train":
            yield "backbone.norm", "no effect with weights"


class Shop(Section):
    task: Literal["shop"]
    price: float

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from ()


Either = Annotated[Lab | Shop, Field(discriminator="task")]
GOOD = """\
task: lab
steps: 10
pretext: {name: simclr}
optimizer: {name: sgd, lr: 1}
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Load a text as the file ``a.yaml`` of the working directory."""
    monkeypatch.chdir(tmp_path)

    def read(text: str, *overrides: str, kind: Any = Lab) -> Any:
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        return load("a.yaml", overrides, kind)

    return read


def faults(read, text: str, *overrides: str, kind: Any = Lab) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides, kind=kind)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


# --- What a config says ----------------------------------------------------------------------------------------------


def test_builds_what_it_says(read):
    run = read(GOOD, "pretext.temperature=0.2", "pretext.sizes=[3, 4]")
    method = run.pretext.build("encoder")
    assert (type(method), method.encoder, method.temperature, method.sizes) == (SimCLR, "encoder", 0.2, (3, 4))
    assert run.optimizer.build([7]) == ([7], 1.0, 0.9)
    assert run.backbone.build().settings["name"] == "resnet50"


def test_a_setting_called_name_is_no_choice(read):
    assert read(GOOD, "backbone.name=anything").backbone.arguments()["name"] == "anything"


def test_defaults_stand_in_the_resolved_config(read):
    shown = yaml.safe_load(show(read(GOOD)))
    assert shown["pretext"] == {"name": "simclr", "temperature": 0.1, "sizes": [32, 32]}
    assert shown["backbone"]["name"] == "resnet50"
    assert shown["weights"] is None
    assert list(shown) == list(Lab.model_fields)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("1", 1.0),
        ("-.5", -0.5),
        ("+1.", 1.0),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("0x10", 16.0),
    ],
)
def test_numbers(read, text, value):
    lr = read(GOOD, f"optimizer.lr={text}").optimizer.arguments()["lr"]
    assert lr == value
    assert isinstance(lr, float)


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("optimizer.lr", ["'1e-3'", "fast", "true", "1:30", "[1]", "null", "1__0"]),
        ("steps", ["1.5", "1.0", "1e3", "'3'", "true", "0"]),
        ("pretext.colors", ["yes", "on", "1", "'true'"]),
        ("weights", ["1", "true", "[a]"]),
    ],
)
def test_what_is_not_of_the_type_is_refused(read, setting, wrong):
    for value in wrong:
        [fault] = faults(read, GOOD.replace("simclr", "jigsaw"), f"{setting}={value}")
        assert fault.startswith(f'override "{setting}={value}": {setting}: '), fault
        assert "expected" in fault
        assert "got" in fault


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "2020-01-01", "1:30", "1e-3x", "010x", "é", "'1e-3'", "'null'", "a=b"]
)
def test_text_stays_text(read, text):
    assert read(GOOD, f"weights={text}").weights == text.strip("'")


def test_what_an_override_sets(read):
    run = read(GOOD, "backbone={stages: [5, 6]}", "backbone.stages.1=7", "weights=", "steps=20", "steps=30")
    assert run.backbone.arguments()["stages"] == [5, 7]
    assert (run.weights, run.steps) == (None, 30)


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_every_fault_at_once_with_its_line(read):
    found = faults(
        read,
        """\
task: lab
steps: 1.5
warmup: yes
limit: some

pretext: {name: simclr, sizes: [1, x], temprature: 3}
backbone:
  name: 5
  stages:
    - 1
    - a
    - 3.5
  norm: frosen
  name: 6
  anchors: [[1, 2], [3, q]]
  options: {deep: [1]}
optimizer:
  name: sdg
extra: 1
""",
        "backbone.stages.0=q",
        "nothing",
        "steps.a=3",
    )
    assert found == [
        "a.yaml:2: steps: wrong value, expected an integer > 0, got 1.5",
        'a.yaml:3: warmup: wrong value, expected an integer, got "yes"',
        'a.yaml:4: limit: wrong value, expected an integer or all, got "some"',
        'a.yaml:6: pretext.sizes.1: wrong value, expected an integer, got "x"',
        'a.yaml:6: pretext.temprature: unknown key. Did you mean "temperature"? Keys here: name, temperature, sizes',
        "a.yaml:8: backbone.name: wrong value, expected text, got 5",
        'a.yaml:11: backbone.stages.1: wrong value, expected an integer, got "a"',
        "a.yaml:12: backbone.stages.2: wrong value, expected an integer, got 3.5",
        'a.yaml:13: backbone.norm: unknown choice, expected one of train, frozen, got "frosen". Did you mean "frozen"?',
        "a.yaml:14: backbone.name: duplicate key, it stands at a.yaml:8 too",
        'a.yaml:15: backbone.anchors.1.1: wrong value, expected a number, got "q"',
        "a.yaml:16: backbone.options.deep: wrong value, expected a number or true or false or text, got [1]",
        "a.yaml:17: optimizer.lr: missing, expected a number (the learning rate)",
        'a.yaml:18: optimizer.name: unknown choice, expected one of sgd, adamw, got "sdg". Did you mean "sgd"?',
        "a.yaml:19: extra: unknown key. Keys here: task, steps, warmup, weights, limit, pretext, backbone, optimizer",
        'override "backbone.stages.0=q": backbone.stages.0: wrong value, expected an integer, got "q"',
        'override "nothing": expected key=value, for example optimizer.lr=0.1',
        'override "steps.a=3": steps.a: no such place, steps is 1.5',
    ]


def test_what_is_missing(read):
    assert faults(read, "task: lab\noptimizer:\n  name: sgd\npretext:\n  temperature: 1\nbackbone:\n") == [
        "a.yaml:1: steps: missing, expected an integer > 0 (How long)",
        "a.yaml:2: optimizer.lr: missing, expected a number (the learning rate)",
        "a.yaml:4: pretext.name: missing, expected one of simclr, jigsaw",
        "a.yaml:6: backbone: wrong value, expected a section, got null",
    ]
    [fault] = faults(read, GOOD, "pretext=simclr")
    assert fault.endswith('pretext: wrong value, expected a section with name: one of simclr, jigsaw, got "simclr"')


def test_the_kind_of_run_is_chosen_by_task(read):
    assert isinstance(read("task: shop\nprice: 1", kind=Either), Shop)
    assert faults(read, "price: 1", kind=Either) == ["a.yaml:1: task: missing, expected one of lab, shop"]
    [fault] = faults(read, "price: 1\ntask: shoop", kind=Either)
    assert fault == 'a.yaml:2: task: unknown choice, expected one of lab, shop, got "shoop". Did you mean "shop"?'
    assert faults(read, "task: shap\nprice: x", kind=Either) == [
        'a.yaml:1: task: unknown choice, expected one of lab, shop, got "shap". Did you mean "shop"?',
        'a.yaml:2: price: wrong value, expected a number, got "x"',
    ]
    assert faults(read, "task: shop\npric: 1", kind=Either) == [
        "a.yaml:1: price: missing, expected a number",
        'a.yaml:2: pric: unknown key. Did you mean "price"? Keys here: task, price',
    ]


def test_a_misspelt_choice_hides_no_fault(read):
    text = "task: lob\nsteps: 0\npretext: {name: jigsw, grid: 4}\noptimizer: {name: sgd, lr: x}\n"
    assert faults(read, text, kind=Either) == [
        'a.yaml:1: task: unknown choice, expected one of lab, shop, got "lob". Did you mean "lab"?',
        "a.yaml:2: steps: wrong value, expected an integer > 0, got 0",
        "a.yaml:3: pretext.grid: wrong value, expected one of 2, 3, got 4",
        'a.yaml:3: pretext.name: unknown choice, expected one of simclr, jigsaw, got "jigsw". Did you mean "jigsaw"?',
        'a.yaml:4: optimizer.lr: wrong value, expected a number, got "x"',
    ]


def test_settings_that_contradict_each_other(read):
    assert faults(read, GOOD + "warmup: 11\nbackbone:\n  norm: frozen\n", "weights=x") == [
        "a.yaml:5: warmup: no end, expected at most steps (10), got 11",
        "a.yaml:7: backbone.norm: no effect with weights",
    ]


def test_a_choice_does_not_take_the_settings_of_another(read):
    text = GOOD.replace("simclr", "simclr, temperature: 3")
    assert faults(read, text, "pretext.name=jigsaw") == [
        "a.yaml:3: pretext.temperature: unknown key. Keys here: name, grid, colors",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a.yaml:1: expected a mapping (key: value), got nothing"),
        ("# task: lab\n", "a.yaml:1: expected a mapping (key: value), got nothing"),
        ("- a", "a.yaml:1: expected a mapping (key: value), got a sequence"),
        ("lab", "a.yaml:1: expected a mapping (key: value), got a scalar"),
        ("task: lab\n  steps: 3", "a.yaml:2: not YAML: mapping values are not allowed here (column 8)"),
        (
            "task: lab\npretext: {name: a\n",
            "a.yaml:3: not YAML: expected ',' or '}', but got '<stream end>' (column 1)",
        ),
        ("task: lab\n\tsteps: 1", "a.yaml:2: not YAML: found character '\\t' that cannot start any token (column 1)"),
        ("a: 1\n---\nb: 2", "a.yaml:2: not YAML: but found another document (column 1)"),
        ("a: \x01", "a.yaml:1: not YAML: special characters are not allowed"),
    ],
)
def test_what_is_not_a_config(read, text, fault):
    assert faults(read, text) == [fault]


def test_yaml_beyond_plain_values_is_refused(read):
    found = "\n".join(
        faults(read, GOOD + "weights: &a x\nlimit: *a\nwarmup: !!python/name:os.system 1\n? [1]\n: 2\n<<: {steps: 1}")
    )
    assert "a.yaml:5: limit: an alias (*name) repeats another value" in found
    assert "a.yaml:7: warmup: expected a number, text, true, false or null" in found
    assert "a.yaml:8: expected text as a key, got a sequence" in found
    assert "a.yaml:10: <<: unknown key" in found
    assert faults(read, "a: &a [*a]")[0].startswith("a.yaml:1: a: unknown key")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    for name, reason in {"none.yaml": "No such file", ".": "Is a directory", "b.yaml": "not UTF-8 text"}.items():
        with pytest.raises(ConfigError, match=f"cannot be read, expected a YAML file: {reason}"):
            load(tmp_path / name, (), Lab)


@pytest.mark.parametrize(
    "override", ["", "=1", "a", ".a=1", "a.=1", "a..b=1", "weights=*x", "weights=[1", "steps.0.a=1"]
)
def test_overrides_that_are_none(read, override):
    [fault] = faults(read, GOOD, override)
    assert fault.startswith(f'override "{override}": ')


# --- show ------------------------------------------------------------------------------------------------------------

ODD_TEXTS = [
    "",
    " ",
    "yes",
    "null",
    "~",
    "1e-3",
    "1_0",
    "0x1",
    ".inf",
    "true",
    "- a",
    "a: b",
    "#",
    "'",
    '"',
    "a\nb",
    "é😀",
    "*a",
    "=",
    "<<",
    "x" * 300,
]


def random_config(seed: int) -> dict:
    rng = random.Random(seed)

    def number() -> float:
        return rng.choice([0, 1, -3, 0.1, 1e-9, 1e22, math.inf, -math.inf, rng.uniform(-1, 1), rng.randrange(10**9)])

    def text() -> str:
        return rng.choice(ODD_TEXTS)

    values = [number, text, lambda: rng.random() < 0.5]
    config = {
        "task": "lab",
        "steps": rng.randrange(100, 10**9),
        "warmup": rng.randrange(-100, 100),
        "weights": rng.choice([None, text()]),
        "limit": rng.choice(["all", 3]),
        "pretext": rng.choice(
            [{"name": "simclr", "temperature": number()}, {"name": "jigsaw", "colors": False, "grid": 2}]
        ),
        "backbone": {
            "name": text(),
            "stages": [rng.randrange(9) for _ in range(rng.randrange(4))],
            "anchors": rng.choice([None, [], [[number()] * 3, []]]),
            "options": {text(): rng.choice(values)() for _ in range(rng.randrange(4))},
        },
        "optimizer": rng.choice([{"name": "sgd", "lr": number()}, {"name": "adamw", "lr": number(), "eps": number()}]),
    }
    return {key: value for key, value in config.items() if key != "backbone" or rng.random() < 0.8}


@pytest.mark.parametrize("seed", range(100))
def test_what_is_shown_loads_to_the_same_run(read, seed):
    run = TypeAdapter(Lab).validate_json(json.dumps(random_config(seed)))
    again = read(show(run))
    assert again == run
    assert show(again) == show(run)
    assert type(again.pretext) is type(run.pretext)
