"""Ablations: runs that differ from one, the base, in one thing each; what is asked for, and what a run changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from . import paths
from .config import Config
from .errors import UserError
from .identity import FILES, PLACES, SHAPING, by_name, flat, idle_keys
from .settings import Arm


def ablation_base(config: Config) -> Config:
    """The run that every ablation differs from in one thing; all of them lie in ``OUT/<preset>-ablations``."""
    return config.updated(config.ablations.base).model_copy(update={"preset": f"{config.preset}-ablations"})


def check_changes(config: Config) -> None:
    """Raises UserError for a setting in ``[ablations]`` that changes no run: its runs would be the base's own, or
    a teacher's, which is no arm of a comparison. Files are told apart by their names, as they may lie elsewhere."""
    settings = flat(ablation_base(config).resolved())
    for own in config.ablations.settings:
        for key in set(own) & set(FILES):
            others = [settings[key], *(other[key] for other in config.ablations.settings if key in other)]
            alike = [other for other in others if other != own[key] and by_name(other) == by_name(own[key])]
            if alike:
                raise UserError(
                    f"{own[key]!r} in ablations.settings and {alike[0]!r} have one name; expected another {key} to "
                    "have a name of its own, by which tables tell them apart; rename one of the two"
                )
        for key in own:
            if key.partition(".")[0] not in SHAPING or key in ("train.seed", *PLACES):
                raise UserError(
                    f"ablations.settings names {key!r}, which is no change of a run; expected settings of "
                    f"{', '.join(SHAPING)}; other seeds are ablations.seeds, and other text or another evaluation is "
                    "for all runs alike, in an output folder of its own"
                )
            if (key, own[key]) == ("mutual.arm", "teacher"):
                raise UserError(
                    "ablations.settings names arm 'teacher', which no table compares; expected one of "
                    f"{', '.join(get_args(Arm))}; a teacher is trained for arm distill"
                )
        one = ablation_base(config).updated(own)
        unread = [key for key in own if key in idle_keys(one.resolved())]
        if unread:
            raise UserError(
                f"ablations.settings has {', '.join(unread)}, which a run of arm {one.mutual.arm!r} and objective "
                f"{one.model.objective!r} does not read; expected changes of what it does; leave that out"
            )


def note_plan(config: Config, out: Path) -> None:
    """Keep beside the runs of ``[ablations]`` what was asked for: from the runs alone no one could tell the base."""
    paths.write_json(paths.ablations(out, config.preset) / "ablations.json", config.resolved())


def noted_plan(folder: Path) -> Config | None:
    """The configuration whose ablations were last asked for in `folder`; None where none were. Raises UserError, naming
    the file, where it is not one of this version."""
    noted = folder / "ablations.json"
    if not noted.is_file():
        return None
    try:
        return Config.model_validate(paths.read_json(noted))
    except ValueError:  # no JSON, or settings that this version does not have
        raise UserError(
            f"{noted} has no configuration of this version; expected what `wmlkit study run --ablations` noted; remove "
            "that file alone, the runs beside it stay, and give that command again"
        ) from None


def changes(resolved: Mapping[str, Any], base: Config) -> dict[str, Any]:
    """What a run's `resolved` configuration has otherwise than `base`, ``{"mutual.alpha": 0.1}``; apart from its seed,
    from what the run does not read, and from where files lie, which another machine may say otherwise."""
    aside, expected = ("train.seed", *PLACES, *idle_keys(resolved)), flat(base.resolved())
    return {
        key: value
        for key, value in flat(resolved).items()
        if key not in aside and (by_name(value) != by_name(expected[key]) if key in FILES else value != expected[key])
    }


def ablation_name(changed: Mapping[str, Any]) -> str:
    """``{"mutual.alpha": 0.1}`` -> ``"alpha = 0.1"``; no change: ``"base"``. A name that two sections have keeps its
    section: ``"outer.lr = 0.1"``."""
    named = {key: key if _in_sections(key.partition(".")[2]) > 1 else key.partition(".")[2] for key in changed}
    return ", ".join(f"{named[key]} = {str(value).lower()}" for key, value in changed.items()) or "base"


def _in_sections(name: str) -> int:
    return sum(name in Config.model_fields[section].annotation.model_fields for section in SHAPING)  # type: ignore[union-attr]
