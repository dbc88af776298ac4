"""What a training step of four peers costs: time, memory, arithmetic, against the released form of it.

A step here is forward, loss and backward; the optimizer's part, the same for all forms, is measured beside it.
Memory is counted above the peers' weights and gradients, which are there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .. import losses
from ..config import load_preset
from ..data.batches import Batch
from ..device import setup
from ..errors import UserError
from ..forward import AtPositions, kl_positions
from ..losses import MutualOptions
from ..models import hidden_states
from ..optim import build_optimizers
from ..search import search_students
from ..search_cost import flop_per_token
from ..settings import TrainConfig
from ..shapes import Student, base_student
from .measure import Run, backward, check_repeats, interleaved, matrix_product, peaks, plain_model, rows, warm_peaks

MASKED = 0.15  # share of the positions that are scored
RELEASED = MutualOptions(0.5, "target", "peer", detach_targets=False, kl_reduction="batchmean")


@dataclass(frozen=True)
class Setting:
    """Sizes of a step: B rows of T tokens, one document each; `positions` and `options` of the KL."""

    vocab_size: int
    batch_size: int
    block_size: int
    shapes: tuple[Student, ...]
    positions: str = "scored"
    options: MutualOptions = MutualOptions()


_SMALL = tuple(Student(layers, 4, width, 4 * width) for layers, width in ((2, 128), (3, 192), (4, 256), (4, 256)))


def find_setting(name: str) -> Setting:
    """small: four students of 1.5 to 5.4M parameters. all-positions: the same with the released loss. paper: its own.

    Raises UserError for another name.
    """
    if name == "small":
        return Setting(8192, 8, 128, _SMALL)
    if name == "all-positions":
        return Setting(8192, 8, 128, _SMALL, "all", RELEASED)
    if name == "paper":
        paper = load_preset("paper-10m")
        vocabulary = paper.data.vocab_size
        shapes = search_students(base_student(paper.model), 4, paper.search, paper.model, vocabulary, 512)
        return Setting(vocabulary, 1, 128, tuple(shapes))
    raise UserError(f"there is no setting {name!r}; expected small, paper or all-positions")


@dataclass(frozen=True)
class Work:
    """Peers and a batch of random tokens, the same for every variant."""

    setting: Setting
    models: list[PreTrainedModel]
    batch: Batch
    device: torch.device

    @property
    def leaves(self) -> list[Tensor]:
        return [p for model in self.models for p in model.parameters()]


def make_work(name: str) -> Work:
    """The work of a setting, on the device that `setup` chooses, float32."""
    setting, device = find_setting(name), setup("fp32", torch.get_num_threads()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = [plain_model(shape, setting.vocab_size, setting.block_size).train() for shape in setting.shapes]
        models = [model.to(device) for model in built]
        batch = random_batch(setting.vocab_size, setting.batch_size, setting.block_size).to(device)
    return Work(setting, models, batch, device)


def random_batch(vocab_size: int, batch_size: int, block_size: int) -> Batch:
    """A batch of random tokens, `MASKED` of them scored; every row is one document."""
    count = batch_size * block_size
    scored = torch.randperm(count)[: round(MASKED * count)].sort().values
    return Batch(
        input_ids=torch.randint(5, vocab_size, (batch_size, block_size)),
        documents=None,
        position_ids=torch.arange(block_size).expand(batch_size, -1),
        targets=torch.randint(5, vocab_size, (count,)),
        scored=scored,
        real=torch.arange(count),
        tokens=count,
        words=count,
    )


def released_loss(logits: Sequence[Tensor], targets: Tensor, scored: Tensor, peer_weights: Tensor) -> Tensor:
    """The loss as the released code has it: P tensors (B, T, V), targets (B*T,), scored (K,) flat positions -> L1.

    Every pair of peers takes two softmaxes at all positions, no target is detached, the sum is divided by B. The CE
    is that of the scored positions.
    """
    total = logits[0].new_zeros(())
    for i, student in enumerate(logits):
        ce = F.cross_entropy(student.flatten(0, 1)[scored], targets[scored])
        kl = logits[0].new_zeros(())
        for j, target in enumerate(logits):
            if i != j:
                pair = F.kl_div(F.log_softmax(student, dim=-1), F.softmax(target, dim=-1), reduction="batchmean")
                kl = kl + peer_weights[j] * pair
        total = total + 0.5 * peer_weights[i] * ce + 0.5 * kl
    return total


def step_variants(work: Work) -> dict[str, Run]:
    """Forward, loss and backward in every form; each returns the loss, except `trunks`, which has none."""
    setting, batch, options = work.setting, work.batch, work.setting.options
    peers = [AtPositions(model) for model in work.models]
    weights = torch.full((len(peers),), 1 / len(peers), device=work.device)

    def released() -> float:
        positions = batch.position_ids + 2
        logits = [model(input_ids=batch.input_ids, position_ids=positions).logits for model in work.models]
        return backward(released_loss(logits, batch.targets, batch.scored, weights))

    def reference() -> float:
        index, scored = kl_positions(batch, setting.positions)
        logits = [peer(batch, index) for peer in peers]
        arguments = (batch.targets[index], weights, options, setting.batch_size, scored)
        return backward(losses.mutual_loss_reference(logits, *arguments).total)

    def fast(positions: str, options: MutualOptions) -> float:
        index, scored = kl_positions(batch, positions)
        heads = (peer.head(batch, index) for peer in peers)
        arguments = (batch.targets[index], weights, options, setting.batch_size, scored)
        return backward(losses.mutual_loss_of_heads(heads, *arguments).total)

    def trunks() -> float:
        hidden = [hidden_states(model, batch.input_ids, None, batch.position_ids) for model in work.models]
        backward(torch.stack([h.square().mean() for h in hidden]).sum())
        return 0.0

    return {
        "released": released,
        "reference": reference,
        "fast": lambda: fast(setting.positions, options),
        "ce-only": lambda: fast("scored", MutualOptions(0.0)),
        "trunks": trunks,
    }


def bench_step(name: str, repeats: int) -> dict[str, Any]:
    """A step of four peers in each form: medians of interleaved repeats, memory, tokens a second, FLOP.

    In the setting `all-positions` released, reference and fast compute the same number, or an error is raised.
    Model FLOP utilisation compares with a matrix product (`measure.matrix_product`) timed in the same turns; its FLOP
    are those of the whole model (`search_cost.flop_per_token`), also where a form does without some of them.
    """
    check_repeats(repeats)
    work = make_work(name)
    setting, device = work.setting, work.device
    variants = step_variants(work)
    if setting.positions == "all":
        agreement(variants, "released", ("reference", "fast"))
    product, product_flop = matrix_product(device, "fp32")
    for leaf in work.leaves:
        leaf.grad = torch.zeros_like(leaf)
    settings = TrainConfig(optimizer="adamw")
    optimizers = [o for model in work.models for o in build_optimizers(model, settings, device)]

    def optimizer() -> None:
        for one in optimizers:
            one.step()

    def optimizer_ready(name: str) -> None:
        for leaf in work.leaves:
            leaf.grad = torch.zeros_like(leaf) if name == "optimizer" else None

    times = interleaved(
        {**variants, "optimizer": optimizer, "matrix product": product}, repeats, device, optimizer_ready
    )
    product_ms = times.pop("matrix product")["median_ms"]
    memory = peaks(step_peaks, name)
    tokens = setting.batch_size * setting.block_size
    share = 1.0 if setting.positions == "all" else MASKED
    flop = sum(
        tokens * flop_per_token(s, "roberta", setting.vocab_size, setting.block_size, share) for s in setting.shapes
    )
    seconds = times["fast"]["median_ms"] / 1000
    return {
        "setting": name,
        "vocab_size": setting.vocab_size,
        "tokens": tokens,
        "scored": len(work.batch.scored),
        "parameters": [model.num_parameters() for model in work.models],
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "variants": rows(times, memory),
        "ratios": ratios(times, memory)
        | {
            "tokens_per_second": tokens / seconds,
            "step_flop": flop,
            "matrix_product_flop_per_second": product_flop / product_ms * 1000,
            "model_flop_utilisation": flop / seconds / (product_flop / product_ms * 1000),
        },
    }


def step_peaks(name: str) -> dict[str, float]:
    """Peak memory of each form of a step in this process."""
    work = make_work(name)
    return measured_peaks(step_variants(work), work.leaves, work.device)


def measured_peaks(variants: dict[str, Run], leaves: Sequence[Tensor], device: torch.device) -> dict[str, float]:
    """Peak of each variant above weights and gradients, MiB; after one run each, which makes what is made once."""
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    return warm_peaks(variants, device)


def agreement(variants: dict[str, Run], first: str, others: Sequence[str]) -> None:
    """Raises RuntimeError where forms of the same loss differ by more than float32 may."""
    expected = variants[first]()
    for name in others:
        found = variants[name]()
        if abs(found - expected) > 1e-4 * abs(expected):
            raise RuntimeError(f"{name} gives a loss of {found}, {first} one of {expected}")


def ratios(times: dict[str, dict[str, float]], memory: dict[str, float]) -> dict[str, float]:
    """Of the fast form: speed and memory against the released form, time against cross-entropy alone."""
    fast = times["fast"]["median_ms"]
    return {
        "speedup_vs_released": times["released"]["median_ms"] / fast,
        "speedup_vs_reference": times["reference"]["median_ms"] / fast,
        "memory_vs_released": memory["fast"] / memory["released"],
        "overhead_vs_ce_only": fast / times["ce-only"]["median_ms"],
    }
