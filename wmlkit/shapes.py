"""The shape of a peer; nothing of torch, so that what only reads results stays quick to start."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .settings import ModelConfig


@dataclass(frozen=True)
class Student:
    """The shape of one peer."""

    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int


SHAPE = tuple(field.name for field in fields(Student))


def base_student(model: ModelConfig) -> Student:
    """The base model whose size sets the targets of the search."""
    return Student(model.num_layers, model.num_heads, model.hidden_size, model.intermediate_size)
