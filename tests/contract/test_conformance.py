"""Every check is passed by a small subject that keeps the contract, and failed by the same with one fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_test.simulator.checks.check import Check, Status
from local_test.simulator.checks.registry import CHECKS, select
from local_test.simulator.checks.running import Result
from tests.contract.conformance import outcomes, patience_with, subject

CONTAINER_ONLY = {"train.isolated", "serve.isolated"}
"""Their faults are in tests/container/test_conformance.py: bare programs cannot be kept from the network."""

# What a fault cannot help but break as well, in the same group.
IMPLIED: dict[str, set[str]] = {
    # A body of 6 MB is on the way to one of 25 MB.
    "serve.payload-6mb": {"serve.payload-25mb"},
    # The others' requests accept anything as well.
    "serve.accept-any": {
        "serve.invocations",
        "serve.type-parameter",
        "serve.headers-unknown",
    },
    # Whose connections nobody accepts waits for /ping, and for answers.
    "serve.accept-quick": {"serve.ping-busy", "serve.concurrent"},
}
# Labels that go with a fault; the others have those of the faithful subject.
_BIND = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
_MODELS = "com.amazonaws.sagemaker.capabilities.multi-models"
LABELS = {"serve.bind-to-port": {_MODELS: "true"}, "serve.bind-label": {_MODELS: "true"}}


def names(results: list[Result], status: Status) -> set[str]:
    return {result.check.name for result in results if result.outcome.status is status}


def test_what_keeps_the_contract_passes_every_check(tmp_path: Path) -> None:
    results = outcomes(CHECKS, tmp_path, subject(tmp_path / "subject"))

    assert {
        result.check.name: result.outcome.detail for result in results if result.outcome.status is Status.FAILED
    } == {}
    assert names(results, Status.NOT_APPLICABLE) == CONTAINER_ONLY


@pytest.mark.parametrize("check", [one for one in CHECKS if one.name not in CONTAINER_ONLY], ids=lambda one: one.name)
def test_a_fault_is_found_by_its_check_and_by_no_other_of_its_group(check: Check, tmp_path: Path) -> None:
    """The fault of a subject has the name of the check; there is no check without a fault, or it would pass here."""
    group = [one for one in CHECKS if one.group == check.group]

    broken = subject(tmp_path / "subject", check.name, LABELS.get(check.name))
    results = outcomes(group, tmp_path, broken, patience_with(check.name))

    failing = {result.check.name: result.outcome.detail for result in results if result.outcome.status is Status.FAILED}
    assert set(failing) == {check.name} | IMPLIED.get(check.name, set()), failing
    assert all(failing.values()), "a failure without evidence"


def test_names_are_told_apart_and_say_their_side() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert {check.side for check in CHECKS} == {"train", "serve"}


def test_checks_are_chosen_by_pattern() -> None:
    assert [check.name for check in select(["train.sigterm"])] == ["train.sigterm"]
    assert len(select(["serve.*"])) > 20
    with pytest.raises(KeyError, match=r"serve\.nothing-like-this"):
        select(["serve.nothing-like-this"])
