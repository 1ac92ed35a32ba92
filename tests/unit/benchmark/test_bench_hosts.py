"""``dsmoe bench --hosts``: its mistakes, its settings and its table; nothing is made or started."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import dsmoe
from support.records import record

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.link.measure import LinkPlace, MeasuredLink, host_variables
from dsmoe.benchmark.link.settings import Setting, combinations, common_batch
from dsmoe.benchmark.link.table import megabytes, print_table
from dsmoe.common.errors import UsageError
from dsmoe.hosts.spaces import namespace_cluster
from dsmoe.hosts.spaces.link import Link


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rate 1gbit", "--rate is for --hosts alone"),
        ("--no-remat", "--no-remat is for --hosts alone"),
        ("--hosts 0", "'0' is not a whole number from 1 to 64"),
        ("--hosts 2 --rate 25", "--rate '25': expected a number with kbit, mbit or gbit"),
        ("--hosts 2 --delay 5", "--delay '5': expected a number with us or ms"),
        ("--hosts 2 --micro-batches 1,x", "'x' is not a whole number"),
        ("--hosts 2 --precision fp32,fp7", "'fp7': expected one of fp32, fp16, bf16"),
        ("--hosts 2 --setting hostfile=x", "unrecognized arguments: --hostfile x"),
        ("--hosts 2 --setting a='b", "No closing quotation; expected options without dashes"),
        ("--hosts 3", "suite smoke has no case for 3"),
        ("--hosts 2 --expert-parallel 3", "expert_parallel_size 3 does not divide 2 processes"),
        ("--hosts 2 --micro-batches 8 --global-batch 8", "do not divide the global batch of 8"),
    ],
)
def test_mistakes_are_one_line(arguments: str, words: str, capsys) -> None:
    assert dsmoe("bench", *arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_without_root_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(namespace_cluster.os, "geteuid", lambda: 1000)
    assert dsmoe("bench", "--hosts", "2") == 8
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --hosts: network namespaces need Linux and root")


def test_all_combinations_and_then_each_setting() -> None:
    options = {"--micro-batches": ["1", "8"], "--no-remat": []}
    assert combinations(options, []) == [
        ("--micro-batches", "1", "--no-remat"),
        ("--micro-batches", "8", "--no-remat"),
    ]
    found = combinations({"--micro-batches": ["1"]}, ["zero-stage=1 no-remat", ""])
    assert found == [
        ("--micro-batches", "1", "--zero-stage", "1", "--no-remat"),
        ("--micro-batches", "1"),
    ]


def test_all_settings_have_one_batch() -> None:
    case = find_case("smoke", 4)
    assert common_batch(case, [{"micro_batches": None}]) == 16
    assert common_batch(case, [{"micro_batches": 1}, {"micro_batches": 8}]) == 32
    assert common_batch(case, [{"micro_batch_size": 3}]) == 48
    assert common_batch(find_case("artifact", 4), [{"micro_batches": 3}]) == 1024


def test_every_host_has_its_own_gpus_and_name() -> None:
    assert host_variables(2, 2, "cpu") == {}
    assert host_variables(2, 2, "cuda") == {
        "n1": {"NCCL_HOSTID": "n1", "CUDA_VISIBLE_DEVICES": "0,1"},
        "n2": {"NCCL_HOSTID": "n2", "CUDA_VISIBLE_DEVICES": "2,3"},
    }


def test_a_link_is_a_rate_and_a_delay() -> None:
    assert Link("2.5gbit").bits_per_second == 2.5e9
    assert Link().words == "no limit" and Link("1gbit", "50us").words == "1gbit, 50us a way"
    for wrong in ("1 gbit", "gbit", "1gbps", "-1gbit", "1kbit"):
        with pytest.raises(UsageError, match="--rate"):
            Link(wrong)


def measured(words: tuple[str, ...], **fields: Any) -> MeasuredLink:
    case = find_case("smoke", 4)
    hosts: Any = SimpleNamespace(names=["n1", "n2"], link=Link("1gbit"))
    run = replace(record(), **fields)
    return MeasuredLink(Setting(words, case), LinkPlace(hosts, 2, "cpu", Path("out")), run, None)


def test_the_table_fits_and_has_the_median_of_the_counters() -> None:
    link = {"sent": [[5, 3_000_000, 9_000_000], [1, 2_000_000, 3_000_000]], "received": [[1], [1]]}
    long = measured(
        ("--no-flat-gradients", "--expert-layout", "across", "--zero-stage", "1"), link=link
    )
    assert long.bytes_of("sent") == [3_000_000, 2_000_000]
    out = io.StringIO()
    print_table([long, measured((), link=link)], out)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("as the case has it" in line and "2.00-3.00" in line for line in lines)


def test_bytes_of_hosts_that_agree_are_one_number() -> None:
    assert megabytes([4_410_000, 4_411_000]) == "4.41" and megabytes([]) == ""
    assert megabytes([1_000_000, 2_000_000]) == "1.00-2.00"


def test_an_object_has_what_scripts_read() -> None:
    link = {"sent": [[7], [8]], "received": [[8], [7]]}
    said = measured(("--micro-batches", "1"), link=link).to_dict()
    assert said["setting"] == "--micro-batches 1" and said["micro_batches"] == 1
    assert said["bytes_sent"] == [7, 8] and said["bytes_received"] == [8, 7]
    assert said["seconds"] > 0 and said["losses"] and said["status"] == "ok"
    assert said["rate"] == "1gbit" and said["delay"] is None
