"""Damaged adapter folders: each loads as its files say, or raises a LoRAError; nothing else ever happens.

A failure names the case's number. `pytest --fuzz 20000 tests/test_fuzz.py` tries more of them.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hf_lora import LoRAConfig, LoRAError, LoRAModel, add_lora

from .cases import move
from .fuzz import ERROR, INTACT, MARKER, SAME, Net, draw, lay_out, plain, reference, tensors_of

SECONDS = 120.0  # for one case, whatever the machine: what takes longer hangs. The slowest takes half of one
BYTES = 2**30
IDS = torch.tensor([[0, 3, 5, 11], [2, 2, 7, 1]])


class Bench:
    """A base, the folder of its adapter, and what must still hold of the base after each case."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        torch.manual_seed(0)
        self.base = Net().eval()
        self.weights = {k: v.clone() for k, v in self.base.state_dict().items()}
        self.logits = self.base(IDS).detach()
        model = Net().eval()
        model.load_state_dict(self.weights)
        config = LoRAConfig(
            r=2, lora_alpha=3, target_modules=["embed", "fc", "mix"], modules_to_save=["head"], rank_pattern={"fc": 3}
        )
        model = add_lora(model, config)
        move(model)
        model.save_pretrained(root / "original")
        self.adapted = model(IDS).detach()
        self.files = {p.name: p.read_bytes() for p in (root / "original").iterdir() if p.name != "README.md"}
        self.state = self._state()

    def _state(self) -> object:
        modules = [(name, type(module), sorted(module.__dict__)) for name, module in self.base.named_modules()]
        return modules, [(n, p.data_ptr(), p.requires_grad) for n, p in self.base.named_parameters()]

    def run(self, number: int) -> str:
        """Run one case and return what happened: the error's name, or "loaded"."""
        _, files, expected = draw(number, self.files)
        folder = self.root / str(number)
        lay_out(files, folder)
        outcome = "loaded"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the adapter was made for another class")  # a prefix rewrite is said
                model = LoRAModel.from_pretrained(folder, base_model=self.base)
        except LoRAError as error:
            outcome = type(error).__name__
            if expected == SAME:
                raise RuntimeError(f"refused: {error}") from error
        else:
            got, held = model(IDS).detach(), model.get_adapter_state_dict()
            model.unload()
            assert expected != ERROR, "loaded, which it must not"
            want = self.adapted if expected in (SAME, INTACT) else reference(self.weights, folder, IDS)
            if got.isfinite().all() and want.isfinite().all():
                assert (got - want).abs().max() <= 1e-4 * (1 + want.abs().max()), "computes something else"
            else:  # overflowing sums depend on their order; the numbers themselves do not
                file = {plain(k): v.float() for k, v in tensors_of(folder).items()}
                assert all(torch.equal(held[k], v) for k, v in file.items()), "holds something else"
        assert self._state() == self.state, "the model has changed"
        assert all(torch.equal(v, self.weights[k]) for k, v in self.base.state_dict().items()), "weights have changed"
        assert torch.equal(self.base(IDS), self.logits), "the base computes something else"
        shutil.rmtree(folder)
        return outcome


@contextmanager
def bounded(seconds: float, size: int) -> Iterator[None]:
    """Let the process take that long and that many bytes more than it has; what asks for more gets an error."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} seconds")

    have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (have + size, limit[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits on memory and time are Linux's")
def test_damaged_folders_load_as_they_say_or_raise_a_lora_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path / "bench")
    outcomes: Counter[str] = Counter()
    failures = []
    for number in range(cases := pytestconfig.getoption("fuzz")):
        try:
            with bounded(SECONDS, BYTES):
                outcomes[bench.run(number)] += 1
        except Exception as error:
            name = draw(number, bench.files)[0]
            failures.append(f"case {number} ({name}): {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            bench = Bench(tmp_path / f"after-{number}")  # the old one may be damaged
    assert not failures, f"{len(failures)} of {cases} cases:\n" + "\n".join(failures[:100])
    assert not list(tmp_path.rglob(MARKER)), "a pickle was executed"
    assert outcomes["loaded"] > cases / 20, outcomes
