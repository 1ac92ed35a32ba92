"""Every key and name of the configuration takes effect, or is refused or warned about by name."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
ZERO = {"stage": 2, "reduce_bucket_size": 3000, "overlap_comm": False}
FP16 = {"enabled": True, "loss_scale": 64.0}


def said(config: dict[str, Any], passed: bool = False, **scenario: Any) -> list[str]:
    return run_ranks(1, "said_at_start", config, {"stage": 0, **scenario}, passed)[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping is no key that this engine knows; did you"),
        ({"zero_optimisation": ZERO}, "did you mean zero_optimization?"),
        ({"stage": 2}, "did you mean zero_optimization.stage?"),
        ({"zero_optimization": {**ZERO, "overlap_com": True}}, "zero_optimization.overlap_comm?"),
        ({"fp16": {"enabled": True, "loss_scael": 1.0}}, "did you mean fp16.loss_scale?"),
        ({"fp16": {"enabled": True, "auto_cast": True}}, "fp16.auto_cast is no key"),
        ({"amp": {"opt_level": "O1"}}, "amp.enabled is missing, expected true or false"),
        ({"fp16": True}, "fp16 is True, expected a mapping of enabled, loss_scale"),
        ({"zero_optimization": {"stage": "2"}}, "stage is '2', expected 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 4}}, "stage is 4, expected 0, 1, 2 or 3"),
        ({"optimizer": {"type": "sgd", "params": {"lr": 1}}}, "did you mean SGD?"),
        ({"optimizer": {"type": "AdamWW"}}, "did you mean AdamW?"),
        ({"optimizer": {"type": "lr_scheduler"}}, "optimizer.type is 'lr_scheduler', expected"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.type is None, expected"),
        ({"scheduler": {"type": "WarmUpLR"}}, "did you mean WarmupLR?"),
        ({"scheduler": {"type": "logger"}}, "scheduler.type is 'logger', expected LRRangeTest"),
        ({"scheduler": {"params": {}}}, "scheduler.type is None"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1, "adam_w_mode": False}}},
            "AdamW with adam_w_mode false",
        ),
        ({"optimizer": {"type": "SGD", "params": {"lr": 1, "momentun": 1}}}, "momentun"),
    ],
    ids=str,
)
def test_what_would_be_passed_over_is_refused(config: dict, words: str) -> None:
    error = said(config)[-1]
    assert error.startswith(("ValueError", "TypeError")) and words in error, error


@pytest.mark.parametrize(
    ("config", "scenario", "words"),
    [
        ({"my_own_settings": {"a": 1}}, {}, "my_own_settings is no key that this engine knows"),
        ({"fp16": {**FP16, "hysteresis": 3}}, {}, "it needs fp16.enabled and no fp16.loss_scale"),
        ({"disable_allgather": True}, {}, "disable_allgather is True and has no effect"),
        ({"memory_breakdown": True}, {}, "memory_breakdown is True and has no effect"),
        (
            {"zero_optimization": {**ZERO, "stage": 1, "overlap_comm": True}},
            {"stage": 1},
            "overlap_comm is True and has no effect; it needs ZeRO stage 2 or 3",
        ),
        (
            {"zero_optimization": {**ZERO, "stage3_max_live_parameters": 5}},
            {"stage": 2},
            "it needs ZeRO stage 3",
        ),
        (
            {"zero_optimization": {**ZERO, "flat_gradients": True}},
            {"stage": 2},
            "reduce_bucket_size is 3000 and has no effect; it needs ZeRO without flat_gradients",
        ),
        (
            {"optimizer": {"type": "Adam", "params": {"lr": 1, "weight_decay": 0.1}}},
            {},
            "Adam decays weights as AdamW does",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_named(config: dict, scenario: dict, words: str) -> None:
    found = said(config, **scenario)
    assert any(words in text for text in found[:-1]), found
    assert "Error" not in found[-1]


def test_a_plain_configuration_says_nothing() -> None:
    for scenario in ({"stage": 0}, {"stage": 1}, {"stage": 2}, {"precision": "bf16"}):
        assert said({}, **scenario) == ["SGD"]
    assert said({"fp16": {"enabled": False, "initial_scale_power": 8}}) == ["SGD"]


def test_names_are_the_classes_that_run() -> None:
    """Adagrad was AdamW; a schedule without params was a TypeError."""
    assert said({"optimizer": {"type": "Adagrad", "params": {"lr": 0.1}}}) == ["Adagrad"]
    assert said({"scheduler": {"type": "WarmupLR"}}) == ["SGD"]


def test_the_second_of_two_is_named() -> None:
    found = said({"scheduler": {"type": "WarmupLR"}}, passed=True)
    assert any("optimizer 'SGD' is not used" in text for text in found)
    assert any("scheduler 'WarmupLR' is used, and the lr_scheduler" in text for text in found)


class _Recorded(dict):
    """A mapping that notes the keys that are asked for, with their places."""

    def __init__(self, values: dict, front: str, asked: set[str]) -> None:
        super().__init__(
            (k, _Recorded(v, f"{front}{k}.", asked) if isinstance(v, dict) else v)
            for k, v in values.items()
        )
        self.front, self.asked = front, asked

    def __contains__(self, key: Any) -> bool:
        self.asked.add(f"{self.front}{key}")
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        self.asked.add(f"{self.front}{key}")
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(f"{self.front}{key}")
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def _table() -> dict[str, Any]:
    path = ROOT / "overlay" / "deepspeed" / "runtime" / "config_keys.py"
    return runpy.run_path(str(path))


def test_the_table_has_every_key_that_is_read_and_its_default(monkeypatch: Any) -> None:
    """DeepSpeedConfig reads no key that the table lacks; the defaults are those it gives."""
    from deepspeed.profiling import config as profiling
    from deepspeed.runtime import config
    from deepspeed.runtime.swap_tensor import aio_config
    from deepspeed.runtime.zero import config as zero
    from deepspeed.runtime.zero import offload_config

    table = {key: default for key, default, *_ in _table()["KEYS"]}
    asked: set[str] = set()
    defaults: dict[str, Any] = {}

    def recorded(section: Any, name: str, default: Any) -> Any:
        defaults[getattr(section, "front", "") + name] = default
        return section.get(name, default)

    for module in (config, profiling, aio_config, zero, offload_config):
        monkeypatch.setattr(module, "get_scalar_param", recorded)
    sections: dict[str, Any] = {"train_batch_size": 2}
    for key in table:
        *front, last = key.split(".")
        if front and last != "*" and front[0] not in ("optimizer", "scheduler"):
            place = sections
            for part in front:
                place = place.setdefault(part, {})
    sections["fp16"]["hysteresis"] = 2  # else the others of it are not looked for
    sections["zero_optimization"]["stage"] = 2
    for section in [key.split(".")[0] for key in table if key.endswith(".enabled")]:
        sections[section]["enabled"] = section not in ("bfloat16", "bf16", "elasticity")
    monkeypatch.setattr(config, "check_keys", lambda *a: None)
    sections["quantize_training"] = {"quantize_bits": {"target_bits": 8}}
    del sections["bfloat16"], sections["elasticity"]
    for mode in ("dense", "fixed", "variable", "bigbird", "bslongformer"):
        sections["sparse_attention"] = {"mode": mode}
        config.DeepSpeedConfig(_Recorded(sections, "", asked))
    whole = [key[:-1] for key in table if key.endswith("*")]
    parts = {key.rpartition(".")[0] for key in table} | {k[:-1] for k in whole}
    parts |= {part.split(".")[0] for part in parts}
    unknown = {
        key
        for key in asked - set(table) - parts
        if not any(key.startswith(front) for front in whole) and not key.endswith(".*")
    }
    # its check for former names looks for those of the constants
    assert {key for key in unknown if ".ZERO_OPTIMIZATION_CPU" not in key} == set()
    read_elsewhere = (
        "elasticity.",
        "optimizer.",
        "scheduler.",
        "curriculum",
        "pipeline.",
        "progressive_",
    )
    for key in table:
        if key.endswith("*") or key.startswith(read_elsewhere) or key in NOT_READ:
            continue
        assert key in asked, f"{key} is read nowhere"
        if key in defaults and defaults[key] is not None:
            assert table[key] == getattr(defaults[key], "value", defaults[key]), key


#: Keys that DeepSpeedConfig does not read itself.
NOT_READ = {
    "zero_optimization.flat_gradients",  # flat_gradients.py, and these
    "zero_optimization.flat_gradients.reduce",
    "zero_optimization.flat_gradients.dtype",
    "zero_optimization.flat_gradients.bucket_size",
    "zero_optimization.flat_gradients.hierarchical",
    "zero_optimization.cpu_offload_use_pin_memory",
    "checkpoint.verify",  # checkpoint/loading.py; tests/engine/test_manifest.py has its effect
    "allgather_size",  # read where zero_optimization is true
    "bf16.enabled",
    "bfloat16.enabled",
}


def test_every_condition_is_known() -> None:
    from deepspeed.runtime.config_check import HOLDS

    table = _table()
    assert set(HOLDS) == set(table["NEEDS"])
    assert {needs for *_, needs in table["KEYS"] if needs} == set(HOLDS)


def test_the_reference_page_is_that_table() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))["page"]()
    assert (ROOT / "docs" / "reference" / "configuration.md").read_text() == page
