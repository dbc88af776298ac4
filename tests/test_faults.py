"""Numbers that are not finite and memory that runs out: the run stops, skips or splits, and says so."""

from __future__ import annotations

import re
import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from compare import rows, weights
from small import make_batch, make_peers

from wmlkit import bilevel, checkpoint, faults, measure, paths, steps, train
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.evaluate import minimal_pairs
from wmlkit.forward import AtPositions
from wmlkit.progress import progress_line

NAN, INF = float("nan"), float("inf")
SETTINGS = {"train.log_every": 1, "train.checkpoint_every": 2, "train.keep_checkpoints": 9, "evaluate.curve": []}


def config(**changes):
    return load_preset("smoke", SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train.run(config(), tmp_path_factory.mktemp("undisturbed"))


def break_gradient(monkeypatch, at, value=NAN):
    """Peer 2's gradient has one number that is not finite at the steps `at`, while its loss is sound."""
    sound = steps._gradients

    def broken(state, *arguments):
        found = sound(state, *arguments)
        if state.step + 1 in at:
            next(p for p in state.models[1].parameters() if p.grad is not None).grad.view(-1)[0] = value
        return found

    monkeypatch.setattr(steps, "_gradients", broken)


def unseen(state, loss, norms, hypergradient, settings, device):
    """What a step does on a card: it notes what is wrong and goes on."""
    state.faults = faults.note(state.faults, (loss.ce, loss.kl, norms), state.step + 1)
    return False


def test_first_fault_by_hand():
    """Peer 2 has no gradient at step 3, peer 1 no loss at step 5: step 3 is first, and stays what it was."""
    sound = torch.ones(2)
    seen = faults.note(None, (sound, sound, sound), 1)
    faults.raise_first(seen)
    assert seen.tolist() == [[0, 0], [0, 0], [0, 0]]
    seen = faults.note(seen, (sound, sound, torch.tensor([1.0, INF])), 3)
    seen = faults.note(seen, (torch.tensor([NAN, 1.0]), sound, torch.tensor([1.0, INF])), 5)
    assert seen.tolist() == [[5, 0], [0, 0], [0, 3]]
    with pytest.raises(UserError, match="step 3: the gradient of peer 2 is not finite, expected a number; lower"):
        faults.raise_first(seen)


def test_a_measured_loss_that_is_not_finite_is_named(tmp_path):
    """The updates of one step end all numbers, and the next measure comes before the next step's loss."""
    wild = {"train.lr": 1e30, "train.optimizer": "adamw", "train.warmup_steps": 0, "train.eval_every": 1}
    with pytest.raises(UserError, match="step 1: the loss on measured text of peer 1 is not finite, .* lower train.lr"):
        train.run(load_preset("smoke", SETTINGS | wild | {"mutual.arm": "independent"}), tmp_path)
    early = {"search.prefer": "proxy", "search.proxy_steps": 3, "train.skip_not_finite": 9}
    with pytest.raises(UserError, match="the early loss in the search of peer 1 is not finite"):
        train.run(load_preset("smoke", SETTINGS | wild | early), tmp_path)


def test_of_one_step_the_loss_is_named_before_the_gradient():
    bad = torch.tensor([1.0, NAN])
    with pytest.raises(UserError, match="step 7: the ce of peer 2"):
        faults.raise_first(faults.note(None, (bad, torch.tensor([NAN, NAN]), bad), 7))


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_gradient_that_is_not_finite_stops_at_its_step(value, undisturbed, monkeypatch, tmp_path):
    """No checkpoint is later than the fault, and the run goes on from the one before it to the same bytes."""
    with monkeypatch.context() as patch:
        break_gradient(patch, {5}, value)
        with pytest.raises(
            UserError, match="step 5: the gradient of peer 2 is not finite.*would go on from its last checkpoint"
        ):
            train.run(config(), tmp_path)
    folder = train.run_folder(config(), tmp_path)
    saved = [path.name for path in checkpoint.checkpoints(folder / "checkpoints")]
    assert saved == ["step-00000002", "step-00000004"]
    train.run(config(), tmp_path)
    assert weights(folder) == weights(undisturbed) and rows(folder) == rows(undisturbed)


def test_where_nothing_waits_for_the_device_the_step_is_still_named(monkeypatch, tmp_path):
    """As on a card: a fault at step 3 is found at the log of step 4, before the checkpoint there."""
    break_gradient(monkeypatch, {3})
    monkeypatch.setattr(steps, "_leaves_out", unseen)
    with pytest.raises(UserError, match="step 3: the gradient of peer 2"):
        train.run(config(train__log_every=4, train__checkpoint_every=4), tmp_path)
    assert not list(tmp_path.glob("smoke/*/checkpoints/*"))


def test_a_run_that_is_stopped_saves_no_fault(monkeypatch, tmp_path):
    """As on a card, where nobody has looked yet: the checkpoint of a signal would keep the numbers."""
    break_gradient(monkeypatch, {3})
    monkeypatch.setattr(steps, "_leaves_out", unseen)
    monkeypatch.setattr(train, "stop_signals", lambda: nullcontext(lambda: signal.SIGTERM if ticks.pop() else 0))
    ticks = [0, 1, 0, 0]  # from the last on: asked to stop after step 3
    with pytest.raises(UserError, match="step 3: the gradient of peer 2"):
        train.run(config(train__log_every=12, train__eval_every=12, train__checkpoint_every=12), tmp_path)
    assert not list(tmp_path.glob("smoke/*/checkpoints/*"))


def test_skipped_steps_change_nothing_and_are_counted(monkeypatch, tmp_path):
    settings = config(train__skip_not_finite=2)
    break_gradient(monkeypatch, {3, 4})
    folder = train.run(settings, tmp_path)
    logged = rows(folder)
    assert [row.get("skipped") for row in logged[:5]] == [None, None, 1, 2, 2] and logged[-1]["skipped"] == 2
    two, four = (torch_file(folder, step) for step in (2, 4))
    assert all(torch.equal(two[name], four[name]) for name in two)  # two steps, not one update
    assert "2 steps skipped" in progress_line(settings, logged[-1])
    assert paths.read_json(folder / "done.json")["steps"] == 12


def torch_file(folder, step):
    from safetensors.torch import load_file

    tensors = load_file(folder / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "rng" not in name}


def test_more_steps_than_may_be_skipped(monkeypatch, tmp_path):
    break_gradient(monkeypatch, {3, 6})
    with pytest.raises(UserError, match=r"step 6: the gradient of peer 2 .*\(1 such steps were skipped, as train.skip"):
        train.run(config(train__skip_not_finite=1), tmp_path)


def test_a_loss_that_is_not_finite_may_be_skipped_and_is_null(monkeypatch, tmp_path):
    sound = steps.inner_loss

    def broken(state, *arguments):
        loss = sound(state, *arguments)
        if state.step == 2:
            loss = replace(loss, ce=loss.ce * torch.tensor([1.0, NAN]).to(loss.ce.device), total=loss.total * NAN)
        return loss

    monkeypatch.setattr(steps, "inner_loss", broken)
    settings = config(train__skip_not_finite=1)
    row = rows(train.run(settings, tmp_path))[2]
    assert row["ce"][0] > 0 and row["ce"][1] is None and row["skipped"] == 1
    assert "none" in progress_line(settings, row)
    with pytest.raises(UserError, match="step 3: the ce of peer 2"):
        train.run(config(), tmp_path)


def test_a_hypergradient_that_is_not_finite(monkeypatch, tmp_path):
    sound = bilevel.hypergradient

    def broken(*arguments, **options):
        gradient, loss = sound(*arguments, **options)
        return gradient + torch.tensor([0.0, INF]).to(gradient.device), loss

    monkeypatch.setattr(bilevel, "hypergradient", broken)
    with pytest.raises(UserError, match="step 1: the hypergradient of peer 2 is not finite"):
        train.run(config(), tmp_path)
    folder = train.run(config(train__skip_not_finite=3), tmp_path)
    assert rows(folder)[-1]["skipped"] == 3 and rows(folder)[-1]["peer_weights"] == [0.5, 0.5]


@pytest.mark.parametrize("limit", [8, 3])
def test_a_batch_that_does_not_fit_is_split(limit, undisturbed, monkeypatch, tmp_path):
    """A forward pass of more than `limit` of the batch's 16 rows runs out of memory, inner and outer step alike."""
    sound = AtPositions.features

    def small_memory(self, batch, index):
        if len(batch.input_ids) > limit and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory: tried to allocate 2.00 GiB")
        return sound(self, batch, index)

    monkeypatch.setattr(AtPositions, "features", small_memory)
    shown = []
    folder = train.run(config(), tmp_path, progress=lambda row: shown.append(progress_line(config(), row)))
    parts = {8: 2, 3: 8}[limit]
    assert [row["parts"] for row in rows(folder)] == [parts] * 12  # found once, then kept
    assert all(f"memory ran out: batches in {parts} parts" in line for line in shown)
    whole, split = (paths.read_json(one / "done.json") for one in (undisturbed, folder))
    for name in ("dev_ce", "held_out_ce", "peer_weights"):
        assert split[name] == pytest.approx(whole[name], rel=1e-3), name
    first, first_split = rows(undisturbed)[0], rows(folder)[0]
    for name in ("ce", "kl", "hypergradient", "peer_weights"):  # before any update: to rounding of losses near ln V
        assert first_split[name] == pytest.approx(first[name], rel=1e-5, abs=5e-6), name


def test_memory_that_runs_out_in_the_outer_step_counts_no_gradient_twice(monkeypatch, tmp_path):
    """There the gradients of the inner step are made already; the batch is taken again in two parts."""
    sound = steps.outer_gradient

    def small_memory(state, *arguments):
        if state.parts == 1:
            raise torch.OutOfMemoryError
        return sound(state, *arguments)

    monkeypatch.setattr(steps, "outer_gradient", small_memory)
    norms = []
    real = faults.gradient_norms
    monkeypatch.setattr(faults, "gradient_norms", lambda peers: norms.append(real(peers)) or norms[-1])
    split = rows(train.run(config(train__steps=1), tmp_path))[0]
    monkeypatch.setattr(steps, "outer_gradient", sound)
    whole = rows(train.run(config(train__steps=1), tmp_path / "whole"))[0]
    assert split.pop("parts") == 2
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
    assert split["hypergradient"] == pytest.approx(whole["hypergradient"], rel=1e-4)


def test_a_split_outlives_a_stop(monkeypatch, tmp_path):
    """A resumed run does not run out of memory again to find out."""
    sound, tries = AtPositions.features, []

    def small_memory(self, batch, index):
        if len(batch.input_ids) > 8 and torch.is_grad_enabled():
            tries.append(len(batch.input_ids))
            raise MemoryError
        return sound(self, batch, index)

    monkeypatch.setattr(AtPositions, "features", small_memory)

    def stop(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config(), tmp_path, progress=stop)
    assert len(tries) == 1
    folder = train.run(config(), tmp_path)
    # The checkpoint of step 2 knows.
    assert len(tries) == 1 and all(row["parts"] == 2 for row in rows(folder))


def test_one_row_that_does_not_fit(monkeypatch, tmp_path):
    def no_memory(self, batch, index):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AtPositions, "features", no_memory)
    says = "memory ran out at step 1 with a single row of the batch; expected one that fits: set a smaller data.block_"
    with pytest.raises(UserError, match=says):
        train.run(config(), tmp_path)


def test_one_of_several_processes_that_has_no_memory_asks_for_smaller_parts():
    """Alone it cannot split the batch; every setting that the message names is one that there is."""
    state, device = SimpleNamespace(step=0, parts=1), SimpleNamespace(processes=2)
    with pytest.raises(UserError, match="one of several processes; .* set a larger train.accumulate, a ") as raised:
        steps._more_parts(state, 16, device)
    assert "outer.batch_size" in str(raised.value)
    for key in re.findall(r"(?:train|data|outer)\.\w+", str(raised.value)):
        section, name = key.split(".")
        assert name in config().resolved()[section], key


@pytest.mark.parametrize("part", ["evaluation_row", "curve"])
def test_a_measurement_that_had_no_room_for_a_moment_is_made_again(part, undisturbed, monkeypatch, tmp_path):
    """Two runs on one card: the other one's peak is no reason to lose the steps since the last checkpoint."""
    tries = []

    def once_without_room(sound):
        def measured(*arguments, **options):
            tries.append(1)
            if len(tries) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return sound(*arguments, **options)

        return measured

    modes = []
    stepped = train.train_step
    monkeypatch.setattr(
        train, "train_step", lambda state, *more: modes.append(state.models[0].training) or stepped(state, *more)
    )
    if part == "curve":  # in the middle of it, where the peers are in evaluation mode
        monkeypatch.setattr(minimal_pairs, "score_encoded", once_without_room(minimal_pairs.score_encoded))
        folder = train.run(config(evaluate__curve=(300,)), tmp_path)
        assert len(list((folder / "curve").glob("*.json"))) == 2
    else:
        losses_of = SimpleNamespace(**vars(measure.losses))
        losses_of.cross_entropies = once_without_room(losses_of.cross_entropies)
        monkeypatch.setattr(measure, "losses", losses_of)
        folder = train.run(config(), tmp_path)
    assert len(tries) > 1 and all(modes)
    done = [paths.read_json(one / "done.json") for one in (undisturbed, folder)]
    assert done[0]["dev_ce"] == done[1]["dev_ce"] and done[0]["peer_weights"] == done[1]["peer_weights"]


def test_a_measurement_is_made_twice_at_most_and_of_several_processes_once():
    """The others of a group wait at another place. Any other error is that of the first time."""

    def tried(error: Exception, processes: int) -> int:
        tries = []

        def measure():
            tries.append(1)
            raise error

        with pytest.raises(type(error)):
            faults.once_more(measure, SimpleNamespace(device=torch.device("cpu"), processes=processes))
        return len(tries)

    assert [tried(torch.OutOfMemoryError(), 1), tried(torch.OutOfMemoryError(), 2), tried(ValueError(), 1)] == [2, 1, 1]


def test_a_compiler_that_fails_is_named(monkeypatch):
    def backend(graph, inputs):
        raise failure

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: real(function, backend=backend, **given))
    failure = RuntimeError("No working C++ compiler found\nmore of it")
    expected = r"torch.compile failed \(.*No working C\+\+ compiler found\); .* or set train.compile to false"
    peer, batch = AtPositions(make_peers("roberta", ((2, 8),))[0].model, compiled=True), make_batch("roberta", seed=1)
    with pytest.raises(UserError, match=expected):
        peer.head(batch, batch.scored)
    failure = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="CUDA out of memory"):  # a step makes smaller parts then
        peer.head(batch, batch.scored)


def test_other_errors_are_no_lack_of_memory():
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert faults.is_out_of_memory(RuntimeError(cublas))
    assert faults.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not faults.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not faults.is_out_of_memory(ValueError("out of memory"))
