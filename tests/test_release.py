"""What goes out of the door: the wheel, the source distribution, an import without a warning, types for users."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import hf_lora

from . import forks
from .pages import ROOT

# A user's program: every public name, and what comes back of the methods that people call most.
PROGRAM = """
from pathlib import Path

import torch
from torch import Tensor, nn

import hf_lora
from hf_lora import {names}

base = nn.Sequential(nn.Linear(2, 2))
config = LoRAConfig(r=2, target_modules=["0"])
model: LoRAModel = add_lora(base, config, "mine")
model = LoRAModel.from_model(base, config)
model = LoRAModel.from_pretrained(Path("folder"), is_trainable=True)
configs: dict[str, LoRAConfig] = model.peft_config
names: list[str] = model.active_adapters()
tensors: dict[str, Tensor] = model.get_adapter_state_dict("mine")
counts: tuple[int, int] = model.get_nb_trainable_parameters()
table: str = model.targets_report()
url: str = model.push_to_hub("me/name")
with model.adapters_active("mine"), model.adapters_disabled():
    model(torch.zeros(1, 2))
plain: nn.Module = model.merge_and_unload()
rate: float = suggested_learning_rate(config)
targets: tuple[str, ...] = resolve_targets(base, "all-linear")
optimizer = torch.optim.AdamW(parameter_groups(model, rate))
check_optimizer(model, optimizer)
check_ready(model)
print(hf_lora.compare("a", "b", model), truncate(model, rank=2).model, compress(base, energy=0.5), suggest_rank(model, []))
try:
    model.add_adapter(LoRAConfig(r=4), "second")
except (LoRAError, errors.TargetError) as error:
    print(error)
"""
WRONG = """
model.set_adapter(3)
add_lora(base, 3)
hf_lora.compare("a", "b", model).nothing
text: int = model.targets_report()
"""
# Everything in strict mode; what others' packages say is left out, which takes a minute.
MYPY = """
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,huggingface_hub.*,accelerate.*,datasets.*,optuna.*]
follow_imports = skip
"""


def built(kind: str, folder: Path) -> Path:
    """Return a distribution of the checkout, built as pip does."""
    module: ModuleType = pytest.importorskip(f"hatchling.builders.{kind}")
    builder = getattr(module, {"wheel": "WheelBuilder", "sdist": "SdistBuilder"}[kind])(str(ROOT))
    return Path(next(builder.build(directory=str(folder), versions=["standard"])))


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert (
            "hf-lora = hf_lora.cli.main:main"
            in wheel.read(next(n for n in wheel.namelist() if "entry_points" in n)).decode()
        )
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_lora").rglob("*.py")}
    assert code <= names
    assert {name for name in names if not name.endswith(".py")} == {"hf_lora/py.typed", "hf_lora/hub/card/adapter.md"}
    assert {name.partition("/")[0] for name in names} == {"hf_lora"}


def test_the_source_distribution_builds_the_wheel_and_holds_no_results(tmp_path: Path) -> None:
    file = built("sdist", tmp_path)
    assert file.stat().st_size < 2**20
    with tarfile.open(file) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "model_cards/templates/adapter.md"} <= names
    assert {name.partition("/")[0] for name in names if "/" in name} == {"hf_lora", "model_cards"}


def test_importing_and_every_public_name_warns_of_nothing(tmp_path: Path) -> None:
    code = "import warnings; warnings.simplefilter('error'); import hf_lora; [getattr(hf_lora, n) for n in hf_lora.__all__]"
    done = forks.run(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_s_program_has_types_in_strict_mode(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    program = PROGRAM.format(names=", ".join(hf_lora.__all__))
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(program)
    wrong.write_text(program + WRONG)
    (tmp_path / "mypy.ini").write_text(MYPY)
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    said, _, _ = api.run([*options, str(right), str(wrong)])
    found = {int(number) for number in re.findall(r"wrong\.py:(\d+): error", said)}
    first = len(program.splitlines()) + 2
    assert not [line for line in said.splitlines() if "right.py" in line], said
    assert found >= set(range(first, first + 4)), said


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert f'__version__ = "{cited["version"]}"' in (ROOT / "hf_lora" / "_version.py").read_text("utf-8")
