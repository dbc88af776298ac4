"""Frozen, validated configuration. Presets are TOML files; every number there carries its source.

A configuration has one level of sections (``train.lr``) and no inheritance: what a run does is what `Config.resolved`
prints. One default depends on another section: `outer.min_lr_ratio` = none is that of ``[train]``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from . import paths
from .errors import UserError, first_line
from .redact import check_settings, redacted
from .settings import (
    DataConfig,
    ModelConfig,
    MutualConfig,
    OuterConfig,
    SearchConfig,
    Section,
    TrackConfig,
    TrainConfig,
)
from .study_settings import AblationsConfig, EvaluateConfig, ReplayConfig, StudyConfig

LONGEST_VALUE = 100  # characters of a wrong value that a message repeats


class Config(Section):
    """A whole configuration: one attribute a section, read from ``presets/<preset>.toml``."""

    preset: str
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    search: SearchConfig = SearchConfig()
    mutual: MutualConfig = MutualConfig()
    outer: OuterConfig = OuterConfig()
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    study: StudyConfig = StudyConfig()
    ablations: AblationsConfig = AblationsConfig()
    replay: ReplayConfig = ReplayConfig()

    @model_validator(mode="after")
    def _floor_leaves_room(self) -> Config:
        weights, floor = self.mutual.num_peers + self.mutual.teacher_is_peer, self.outer.min_weight
        if self.mutual.arm == "wml" and floor * weights >= 1:
            teacher = " and a frozen teacher" if self.mutual.teacher_is_peer else ""
            raise ValueError(
                f"outer.min_weight is {floor:g} for {self.mutual.num_peers} peers{teacher}, whose {weights} weights "
                f"sum to 1; expected less than 1/{weights}, or no weight could move; lower it or mutual.num_peers"
            )
        return self

    @model_validator(mode="after")
    def _steps_of_whole_rows(self) -> Config:
        tokens = self.train.batch_size * self.data.block_size
        for _, size in self.data.block_schedule:
            if tokens % size:
                raise ValueError(
                    f"a step has {tokens:,} tokens (train.batch_size x data.block_size), which rows of {size} tokens "
                    "(data.block_schedule) do not fill; expected a multiple of each row's tokens; change one of the "
                    "three"
                )
        return self

    @model_validator(mode="after")
    def _masked_rows_are_learnt_from(self) -> Config:
        share = self.train.mntp_share
        if share and self.model.masked:
            raise ValueError(
                f"train.mntp_share is {share:g} and model.objective 'mlm', whose rows are masked one and all; expected "
                "0, or 'clm', of whose rows it is a share; change one of the two"
            )
        if share and self.mutual.uses_teacher and self.mutual.teacher is not None:
            raise ValueError(
                f"train.mntp_share is {share:g} and mutual.teacher names a model, which may never have read masked "
                "rows both ways and would teach noise there; expected 0, or a teacher that the run trains; change one "
                "of the two"
            )
        return self

    @property
    def needs_mask(self) -> bool:
        """Whether training masks tokens, so that the tokenizer needs a token for it."""
        return self.model.masked or self.train.mntp_share > 0

    def resolved(self) -> dict[str, Any]:
        """All values, as JSON types."""
        return self.model_dump(mode="json")

    def updated(self, overrides: Mapping[str, Any]) -> Config:
        """A copy with `overrides`, ``{"train.lr": 1e-3, ...}``, checked as if they stood in the preset.

        Raises UserError for an unknown key (with the nearest valid one) or an invalid value.
        """
        document = self.resolved()
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if section not in _KEYS or name not in _KEYS[section]:
                raise UserError(_unknown_key(key))
            document[section][name] = value
        return _validated(document)


_KEYS: dict[str, tuple[str, ...]] = {
    section: tuple(field.annotation.model_fields)  # type: ignore[union-attr]
    for section, field in Config.model_fields.items()
    if section != "preset"
}


def _unknown_key(key: str) -> str:
    known = [f"{section}.{name}" for section, names in _KEYS.items() for name in names]
    # A bare name is compared with the names alone: "learning_rate" has no section to compare.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    if "." not in key:
        by_name = {name.split(".")[1]: name for name in reversed(known)}
        close = difflib.get_close_matches(key, by_name, n=1, cutoff=0.5)
        near = [by_name[close[0]]] if close else near
    return f"unknown config key {key!r}; the nearest valid key is {near[0]!r}"


def _validated(document: Mapping[str, Any]) -> Config:
    for section, values in document.items():
        if section == "preset":
            continue
        if section not in _KEYS:
            raise UserError(f"unknown config section {section!r}; expected one of {', '.join(_KEYS)}")
        if not isinstance(values, Mapping):
            raise UserError(f"config section {section!r} is {values!r}; expected a table of settings; change it")
        for name in values:
            if name not in _KEYS[section]:
                raise UserError(_unknown_key(f"{section}.{name}"))
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        # Raised by a validator of a whole section, or of all: the message is whole.
        if first["type"] == "value_error" and len(first["loc"]) < 2:
            raise UserError(str(first["ctx"]["error"])) from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        value = redacted(repr(first["input"]))
        value = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}..."
        # Brackets that are still text: a shell took the quotation marks inside them
        bare = isinstance(first["input"], str) and first["input"].startswith(("[", "{"))
        remedy = f"in a shell a list stands in single quotes, --set '{key}=[...]'" if bare else "change it"
        raise UserError(f"config key {key!r} is {value}: {message}; {remedy}") from None
    for changes in (config.ablations.base, *config.ablations.settings):
        for key in changes:
            section, _, name = key.partition(".")
            if name not in _KEYS.get(section, ()):
                raise UserError(f"the ablations of preset {config.preset!r} have an {_unknown_key(key)}")
    check_settings(config.resolved())
    return config


def config_of_run(document: Mapping[str, Any], file: Path) -> Config:
    """The configuration that a run's `file` has. Raises UserError where this version refuses one of its settings."""
    try:
        return _validated(document)
    except UserError as error:
        raise UserError(
            f"{file} has a configuration that this version refuses: {error}; read it with the version that trained it, "
            "or move the run elsewhere"
        ) from None


def check_steps(config: Config) -> None:
    """Raises UserError where a run has too few steps for what it is to do: learn weights (`wml`), reach its learning
    rates and alpha, read rows of every length. For what is asked for or about to be trained alone: a base of ablations
    may be shorter than the study, and what ran can be read."""
    train, mutual, outer = config.train, config.mutual, config.outer
    weights = mutual.num_peers + mutual.teacher_is_peer
    if mutual.arm == "wml" and weights > 1 and not outer.due(train.steps):
        raise UserError(
            f"outer.start is {outer.start} and outer.every {outer.every}, so none of the {train.steps} steps "
            "(train.steps) would have an outer step, and wml be what dml is; expected one at least; lower outer.start"
        )
    lengths = {"train.steps": train.steps, "mutual.teacher_steps": mutual.teacher_steps or train.steps}
    rises = [("train.warmup_steps", train.warmup_steps, name, steps) for name, steps in lengths.items()]
    rises.append(("mutual.kl_warmup_steps", mutual.kl_warmup_steps, "train.steps", train.steps))
    for key, rise, name, steps in rises:
        if rise > steps:
            raise UserError(
                f"{key} is {rise} and {name} {steps}, so what rises over these steps would end at "
                f"{100 * steps / rise:.0f} % of its value; expected at most {steps}; lower {key}, or raise {name}"
            )
    done = 0.0
    for share, size in config.data.block_schedule:
        if round((done + share) * train.steps) == round(done * train.steps):
            raise UserError(
                f"data.block_schedule has rows of {size} tokens for {share:g} of {train.steps} steps (train.steps), "
                "which is none; expected a step at least; raise that share or train.steps, or leave that length out"
            )
        done += share


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in paths.PRESETS.glob("*.toml"))


def load_preset(name: str, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """The preset `name` with overrides, a mapping or ``KEY=VALUE`` strings (VALUE as in TOML, else text).

    Raises UserError for an unknown preset, key or value.

    >>> config = load_preset("nursery", ["train.steps=100", "mutual.num_peers=2"])
    >>> config.train.steps, config.mutual.arm
    (100, 'wml')
    >>> load_preset("nursery", ["train.stepz=100"])
    Traceback (most recent call last):
    wmlkit.errors.UserError: unknown config key 'train.stepz'; the nearest valid key is 'train.steps'
    """
    path = paths.PRESETS / f"{name}.toml"
    if name not in preset_names():
        raise UserError(f"there is no preset {name!r}; expected one of {', '.join(preset_names())}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise UserError(f"the preset {path} is not TOML ({first_line(error)}); expected sections of settings") from None
    config = _validated({"preset": name, **document})
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_assignment(text) for text in overrides)
    config = config.updated(overrides)
    check_steps(config)
    return config


def parse_assignment(text: str) -> tuple[str, Any]:
    """``"train.lr=1e-3"`` -> ``("train.lr", 0.001)``; a value that is not TOML is taken as text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set got {text!r}; expected KEY=VALUE, for example train.steps=100")
    if value in ("none", "None", "null"):
        return key.strip(), None
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # the second: brackets in brackets without end
        return key.strip(), value
