"""The settings of a run, one class a section: what each means, what it may be, and its default; those of what is done
with runs stand in `study_settings`.

`wmlkit.config` reads presets into them. A default is that of the class alone; what a preset does stands in its file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Arm = Literal["independent", "dml", "wml", "distill"]  # those that a study compares
Objective = Literal["mlm", "clm"]
MASKED_FAMILIES = ("roberta", "modernbert")
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use takes
Size = Annotated[int, Field(ge=1)]
SHORTEST_BLOCK = 8  # tokens: start, end and a few words
LONGEST_BLOCK = 65_536  # far above any in use
LARGEST = 2**53  # of whole numbers: what JSON files hold exactly, far beyond any size


def _flat(value: Any) -> list[Any]:
    return [one for part in value for one in _flat(part)] if isinstance(value, (list, tuple)) else [value]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        switch = info.field_name is not None and cls.model_fields[info.field_name].annotation is bool
        values = _flat(value)
        if not switch and any(isinstance(one, bool) for one in values):
            raise ValueError("expected a number or text, not true or false")
        if any(isinstance(one, int) and abs(one) > LARGEST for one in values):
            raise ValueError(f"expected a number of at most {LARGEST:,}")
        return value


class DataConfig(Section):
    corpus: str = "nursery"  # "nursery", a fetched corpus' name, or a folder/zip of .train/.dev files
    words: int | None = Field(None, gt=0)  # words of training text to use (nursery: to write); None: all
    dev_words: int | None = Field(None, gt=0)  # the same for the dev text
    held_out: float = Field(0.05, gt=0, lt=0.5)  # share of the *training* text kept for the outer problem
    seed: Seed = 0  # of the nursery and of the choice of the held-out slice
    clean: bool = True
    tokenizer: str = "train"  # "train", or a folder / Hugging Face id of an existing tokenizer
    vocab_size: int = Field(1024, ge=270, le=1_000_000)  # 256 bytes + special tokens + merges; far above any in use
    lowercase: bool = False
    nfkc: bool = False
    # What attends to what: a document's lines, each line for itself, or random windows of one flat stream
    packing: Literal["documents", "lines", "windows"] = "documents"
    block_size: int = Field(32, ge=SHORTEST_BLOCK, le=LONGEST_BLOCK)  # tokens a row
    # (share of the steps, tokens a row) one after the other; rows a step change so that tokens a step do not
    block_schedule: tuple[tuple[float, int], ...] = ()
    max_passes: float | None = Field(None, gt=0)  # refuse to read the training text more often than this
    legality: str = ""  # what a challenge's rules say of the preset; for people

    @model_validator(mode="after")
    def _schedule_covers_all_steps(self) -> DataConfig:
        outside = [size for _, size in self.block_schedule if not SHORTEST_BLOCK <= size <= LONGEST_BLOCK]
        if outside or any(share <= 0 for share, _ in self.block_schedule):
            raise ValueError(
                f"data.block_schedule is {[list(one) for one in self.block_schedule]}; expected pairs of a share of "
                f"the steps above 0 and a row's tokens, {SHORTEST_BLOCK} to {LONGEST_BLOCK:,}; change it"
            )
        if self.block_schedule and abs(sum(share for share, _ in self.block_schedule) - 1) > 1e-6:
            raise ValueError(
                f"data.block_schedule has shares that sum to {sum(share for share, _ in self.block_schedule):g}, "
                "expected 1; change the shares"
            )
        if self.block_schedule and self.block_size > (longest := max(size for _, size in self.block_schedule)):
            raise ValueError(
                f"data.block_size is {self.block_size}, and the longest rows of data.block_schedule have {longest} "
                "tokens, so dev and held-out text would be read at positions that nothing trains; expected no more "
                "than these; lower data.block_size"
            )
        return self

    @property
    def longest_block(self) -> int:
        """Tokens of the longest row of the schedule: what the models must take."""
        return max([self.block_size, *(size for _, size in self.block_schedule)])


class ModelConfig(Section):
    objective: Objective = "mlm"
    family: Literal["roberta", "modernbert", "gpt2", "llama"] = "roberta"
    num_layers: int = Field(2, ge=1)  # the base model, whose size N sets the targets N/2, N/3, ...
    num_heads: int = Field(2, ge=1)
    hidden_size: int = Field(64, ge=8)
    intermediate_size: int = Field(256, ge=8)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if (self.family in MASKED_FAMILIES) != self.masked:
            fitting = "roberta or modernbert" if self.masked else "gpt2 or llama"
            raise ValueError(
                f"model.family {self.family!r} cannot be trained with objective {self.objective!r}; use {fitting}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "change one of the two"
            )
        if self.rotary and (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} over num_heads {self.num_heads} is odd, and {self.family} turns "
                "pairs of a head's numbers by their position; expected an even number; change one of the two"
            )
        return self

    @property
    def rotary(self) -> bool:
        """Whether positions turn pairs of numbers of each head, so that heads have an even width."""
        return self.family in ("modernbert", "llama")

    @property
    def masked(self) -> bool:
        """Whether these are masked language models, which need a tokenizer with a mask."""
        return self.objective == "mlm"


class SearchConfig(Section):
    method: Literal["exact", "bayesian"] = "exact"
    num_layers: tuple[Size, ...] = Field((1, 2, 3), min_length=1)
    num_heads: tuple[Size, ...] = Field((2,), min_length=1)
    hidden_size: tuple[Size, ...] = Field((32, 48, 64), min_length=1)
    intermediate: Literal["fixed", "tied"] = "tied"  # the base's FFN width, or in proportion to hidden_size
    count: Literal["all", "nonzero"] = "all"  # "nonzero": as released, leaves out zero-initialised entries
    init_points: int = Field(30, ge=1)  # Bayesian only
    n_iter: int = Field(70, ge=0)  # Bayesian only
    seed: Seed = 0  # Bayesian, and of the students that "proxy" trains
    # A file of `wmlkit search --json`: its shapes are taken, nothing is searched
    saved: str | None = Field(None, min_length=1)
    tolerance: float | None = Field(None, gt=0)  # largest |size - target| / target; None: whatever is nearest
    max_step_ms: float | None = Field(None, gt=0)  # of a training step, by the cost model of `search_cost`
    max_memory_mib: float | None = Field(None, gt=0)  # of training, by the same model
    flop_per_second: float = Field(5e10, gt=0)  # the machine's rate in that model
    # Which of the `shortlist` shapes nearest to a target: the nearest, the one least like the peers before, or the one
    # with the lowest loss after `proxy_steps` steps of training
    prefer: Literal["size", "distance", "proxy"] = "size"
    shortlist: int = Field(4, ge=1)
    proxy_steps: int = Field(50, ge=1)


class MutualConfig(Section):
    # "teacher" is one model alone, on the same text; `distill` trains it for itself, once a seed
    arm: Literal["independent", "dml", "wml", "distill", "teacher"] = "wml"
    num_peers: int = Field(4, ge=1, le=1000)
    alpha: float = Field(0.5, ge=0, le=1)  # share of the KL term
    kl_weight: Literal["target", "student"] = "target"  # whose weight the KL term carries
    ce_weight: Literal["one", "peer"] = "one"
    detach_targets: bool = True
    kl_positions: Literal["scored", "all"] = "scored"
    kl_reduction: Literal["token_mean", "batchmean"] = "token_mean"
    temperature: float = Field(1.0, ge=1e-3, le=1e3)  # beyond, its square or logits / tau leave float32
    kl_warmup_steps: int = Field(0, ge=0)  # steps over which alpha rises linearly from 0
    # That `dml` keeps and `wml` begins with; None: equal ones. A weight of 0 could never grow
    peer_weights: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    # Whom `distill` learns from: None trains a teacher; else a Hugging Face folder or id with the data's tokenizer
    teacher: str | None = Field(None, min_length=1)
    # Shape of a teacher that is trained: the base model's, or that of peer 1, which then learns from its own like
    teacher_size: Literal["base", "peer"] = "base"
    # Its steps; None: as many as the students'. Fewer keep it from learning a small text by heart
    teacher_steps: int | None = Field(None, ge=1)
    teacher_within_budget: bool = False  # vouches that such a model saw no text beyond this corpus
    frozen_teacher: bool = False  # dml, wml: the teacher is one more peer, a target that learns nothing

    @model_validator(mode="after")
    def _fit_together(self) -> MutualConfig:
        if self.arm == "teacher" and self.num_peers != 1:
            raise ValueError(
                f"mutual.num_peers is {self.num_peers} for arm 'teacher', which is one model alone; set it to 1"
            )
        if self.arm in ("dml", "wml") and not self.frozen_teacher and self.alpha == 1:
            raise ValueError(
                f"mutual.alpha is 1 for arm {self.arm!r}, whose peers would imitate one another alone and "
                "learn nothing of the text; expected less than 1, or a teacher (mutual.arm=distill, or "
                "mutual.frozen_teacher); change mutual.alpha"
            )
        count, given = self.num_peers + self.teacher_is_peer, self.peer_weights
        wrong = given is not None and (len(given) != count or abs(sum(given) - 1) > 1e-6)
        if wrong and self.arm in ("dml", "wml"):
            raise ValueError(
                f"mutual.peer_weights is {list(given or ())} for {self.num_peers} peers"
                f"{' and a frozen teacher' * self.teacher_is_peer}; expected {count} positive numbers that sum to 1; "
                "change it, or leave it out for equal ones"
            )
        if self.teacher is not None and self.teacher_size != "base":
            raise ValueError(
                f"mutual.teacher_size is {self.teacher_size!r}, and mutual.teacher names a model, which has a size of "
                "its own; leave one of the two out"
            )
        if self.teacher is not None and self.teacher_steps is not None:
            raise ValueError(
                f"mutual.teacher_steps is {self.teacher_steps}, and mutual.teacher names a model, which is trained "
                "already; leave one of the two out"
            )
        return self

    @property
    def uses_teacher(self) -> bool:
        """Whether the peers of this run learn from a teacher."""
        return self.arm == "distill" or self.teacher_is_peer

    @property
    def teacher_is_peer(self) -> bool:
        """Whether the teacher is a frozen peer, with a weight of its own behind the peers'."""
        return self.frozen_teacher and self.arm in ("dml", "wml")

    @property
    def trains_base(self) -> bool:
        """Whether this run trains the base model, as a teacher for others."""
        return self.arm == "teacher" and self.teacher_size == "base"


class OuterConfig(Section):
    objective: Literal["logit_ensemble", "probability_mixture", "weighted_ce"] = "logit_ensemble"
    hypergradient: Literal["direct", "sgd", "adam"] = "sgd"
    lr: float = Field(0.25, gt=0)  # eta, step size of the mirror descent
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float | None = Field(None, ge=0, le=1)  # final lr / lr of "cosine"; None: train.min_lr_ratio
    every: int = Field(10, ge=1)  # inner steps between two outer steps
    start: int = Field(0, ge=0)  # no outer step before this inner step; they come at multiples of `every`
    batch_size: int = Field(32, ge=1)  # rows of held-out text a step
    min_weight: float = Field(0.0, ge=0, lt=1)  # floor of each peer's weight

    def due(self, count: int, every: int | None = None) -> range:
        """Which of `count` inner steps, from 0, have an outer step; every: as if that were this setting."""
        every = every or self.every
        return range(-(-self.start // every) * every, count, every)


class TrainConfig(Section):
    seed: Seed = 0
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1)  # rows a step, over all processes
    accumulate: int = Field(1, ge=1)  # parts in which a process takes its rows, to save memory; the sums stay the same
    mask_ratio: float = Field(0.2, gt=0, lt=1)  # MLM and MNTP only
    mask_ratio_end: float | None = Field(None, gt=0, lt=1)  # linear from mask_ratio; None: constant
    mask_random: float = Field(0.0, ge=0, le=1)  # share of masked positions that show a random token instead
    mask_keep: float = Field(0.0, ge=0, le=1)  # share that shows the true token; both still scored
    mask_span: int = Field(1, ge=1, le=100)  # masked tokens come in runs of 1 to this many; 1: each for itself
    # CLM only: share of the rows in which masked tokens are to be guessed with both sides in sight (masked next-token
    # prediction, `Rows.causal_batch`). What is measured stays causal
    mntp_share: float = Field(0.0, ge=0, lt=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    muon_lr: float = Field(0.02, gt=0)  # matrices of the trunk, with optimizer = "muon"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)  # final lr / lr
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    grad_clip: float = Field(1.0, ge=0)  # norm of each peer's gradient; 0: none
    # Of the moving average of each peer's parameters, which is then what is measured, scored and exported; 0: none
    ema_decay: float = Field(0.0, ge=0, lt=1)
    skip_not_finite: int = Field(0, ge=0)  # steps of a run that may be left out because a number was not finite
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Field(1, ge=1, le=1024)  # CPU threads of one run
    compile: bool = False  # torch.compile of the peers in the inner step: minutes at the start, other rounding
    log_every: int = Field(10, ge=1)
    eval_every: int = Field(100, ge=1)  # steps between two measurements of the dev loss
    eval_rows: int = Field(256, ge=1)  # rows of dev and of held-out text in such a measurement
    final_eval_rows: int | None = Field(None, ge=1)  # rows of each at the end, for tables; None: all
    checkpoint_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _masked_positions_are_shared_out(self) -> TrainConfig:
        if self.mask_random + self.mask_keep > 1 + 1e-9:  # 1e-9: decimal shares that sum to 1 may exceed it in binary
            raise ValueError(
                f"train.mask_random {self.mask_random:g} and train.mask_keep {self.mask_keep:g} are shares of the same "
                "positions; expected a sum of at most 1; lower one of the two"
            )
        return self


class TrackConfig(Section):
    """A mirror of metrics.jsonl; no part of what a run is."""

    to: Literal["off", "tensorboard", "wandb"] = "off"
    project: str = "wmlkit"  # Weights & Biases only
    run_name: str | None = None  # None: the run folder's name
