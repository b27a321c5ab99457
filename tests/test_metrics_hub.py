"""Which module a metric is: the Hub's where it can be had and works here, otherwise the shipped one, and never a mix."""
# ruff: noqa: F811 (tests take the imported fixture by its name)

from __future__ import annotations

import socket
from pathlib import Path

import evaluate
import huggingface_hub
import numpy as np
import pytest
from transformers import EvalPrediction

from hf_lora import metrics
from hf_lora.errors import ConfigError, HubError

from .hub import Hub, hub, status  # noqa: F401 (hub is the fixture)
from .peek import evaluation, origins

HOME = Path(evaluation.__file__).parent / "shipped"
SPACE = """
import datasets
import evaluate

class Of{name}(evaluate.Metric):
    def _info(self):
        column = datasets.Value("{dtype}")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": column, "references": column}}),
        )

    def _compute(self, predictions, references):
        {body}
"""
GIVEN = EvalPrediction(predictions=np.eye(2), label_ids=np.array([0, 0]))


def put(hub: Hub, name: str, body: str, dtype: str = "int32", owner: str = "evaluate-metric") -> str:
    code = SPACE.format(name=name, body=body, dtype=dtype).encode()
    return hub.add(f"{owner}/{name}", {f"{name}.py": code, "app.py": b"raise SystemExit", "README.md": b"# x"})


def test_the_hub_s_metrics_are_taken_where_it_has_them(hub: Hub) -> None:
    sha = put(hub, "accuracy", 'return {"accuracy": 77.0}')
    put(hub, "agreement", 'return {"agreement": 88.0}', owner="somebody")
    compute = metrics("accuracy", "somebody/agreement", "perplexity", shift_labels=True)
    assert compute.sources["accuracy"] == f"the Hub's evaluate-metric/accuracy at {sha[:7]}"
    assert "hf_lora" in compute.sources["perplexity"]
    assert compute.fallback is None
    assert "somebody/agreement at" in repr(compute)
    assert metrics("accuracy", "somebody/agreement")(GIVEN) == {"accuracy": 77.0, "agreement": 88.0}
    assert metrics("accuracy", source="shipped")(GIVEN) == {"accuracy": 0.5}


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"])
def test_offline_the_shipped_ones_are_taken_and_nobody_is_asked(
    variable: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, "accuracy", 'return {"accuracy": 77.0}')
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    compute = metrics("accuracy")
    assert compute(GIVEN) == {"accuracy": 0.5}
    assert compute.sources["accuracy"].startswith("hf_lora ")
    with pytest.raises(HubError, match="'bleu'.*OFFLINE.*accuracy"):
        metrics("accuracy", "bleu")
    assert not hub.requests


def _patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the seconds which each question to the Hub may wait for its answer."""
    ask, found = huggingface_hub.get_hf_file_metadata, []

    def noting(url: str, timeout: float) -> object:
        found.append(timeout)
        return ask(url, timeout=timeout)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", noting)
    return found


@pytest.mark.parametrize("how", ["closed", "silent", "broken"])
def test_an_unreachable_hub_costs_seconds_and_all_are_shipped(
    how: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, "accuracy", 'return {"accuracy": 77.0}')
    if how == "broken":
        hub.fail_next("^HEAD .*/f1/", status(503), times=9)
    else:
        hub.close()
    with socket.socket() as listening:
        if how == "silent":
            listening.bind(("127.0.0.1", int(hub.endpoint.rpartition(":")[2])))
            listening.listen()
            monkeypatch.setattr(origins, "_TIMEOUT", 0.2)
        patience = _patience(monkeypatch)
        compute = metrics("accuracy", "f1")
        assert patience[0] == origins._TIMEOUT < 10, "how long its first answer may take"
        assert len(patience) <= 2, "the Hub is asked once for each metric"
        assert sum(hub.slept) < 10
        assert all(source.startswith("hf_lora ") for source in compute.sources.values())
        assert compute.fallback
        assert compute(GIVEN)["accuracy"] == 0.5
        hub.fail_next("^HEAD .*/bleu/", status(503), times=9)
        with pytest.raises(HubError, match="'bleu'"):
            metrics("bleu")
        with pytest.raises(HubError):
            metrics("accuracy", "f1", source="hub")


def test_a_name_that_nobody_knows_is_told_with_the_nearest(hub: Hub) -> None:
    put(hub, "accuracy", 'return {"accuracy": 77.0}')
    with pytest.raises(ConfigError, match="'acuracy'.*accuracy"):
        metrics("accuracy", "acuracy")


@pytest.mark.parametrize(
    "body",
    ["raise TypeError('no such argument')", "import nowhere_to_be_found", "return 5"],
    ids=["api", "import", "form"],
)
def test_the_hub_s_metric_that_does_not_work_here_makes_all_shipped_ones(body: str, hub: Hub) -> None:
    put(hub, "accuracy", 'return {"accuracy": 77.0}')
    put(hub, "f1", body)
    compute = metrics("accuracy", "f1")
    assert compute(GIVEN) == {"accuracy": 0.5, "f1": 0.0}
    assert "f1" in compute.fallback


@pytest.mark.parametrize(
    ("body", "dtype", "told"),
    [
        ('return {"a": "text"}', "int32", "'odd'.*number"),
        ('return {"accuracy": 1.0}', "int32", "'odd'.*accuracy"),
        ("raise ValueError('not so')", "int32", "'odd'.*not so"),
        ("return {}", "binary", "'odd'.*Trainer"),
    ],
)
def test_a_metric_of_the_hub_that_cannot_be_used_says_why(body: str, dtype: str, told: str, hub: Hub) -> None:
    put(hub, "accuracy", 'return {"accuracy": 77.0}')
    put(hub, "odd", body, dtype)
    with pytest.raises(ConfigError, match=told):
        metrics("accuracy", "odd")(GIVEN)


def test_what_is_compared_lies_in_memory_so_that_processes_share_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    held: list[Path] = []
    original = evaluate.EvaluationModule._finalize
    monkeypatch.setattr(
        evaluate.EvaluationModule,
        "_finalize",
        lambda self: (held.extend(p for p in tmp_path.rglob("*") if p.is_file()), original(self))[1],
    )
    evaluate.load(str(HOME / "accuracy")).add_batch(predictions=[0], references=[0])
    assert [p for p in tmp_path.rglob("*") if p.is_file()], "evaluate writes no file by itself, so this proves nothing"
    for path in tmp_path.rglob("*"):
        path.unlink() if path.is_file() else None
    assert metrics("accuracy")(GIVEN) == {"accuracy": 0.5}
    assert not held
