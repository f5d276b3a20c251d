"""Makes, changes and deletes one CloudFormation stack, and waits for it.

Knows no template. Stacks are made and changed at once, without a change set: whoever wants to see first uses the
command's --dry-run, or the aws command. What went wrong is the reason of the first resource that failed, which
CloudFormation tells only among the stack's events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError
from scripts.launcher.plan import Call
from scripts.launcher.waiting import Progress, wait

_POLL_S = 5.0
_GONE = {"StackStatus": "DELETE_COMPLETE"}
_DONE = ("CREATE_COMPLETE", "UPDATE_COMPLETE")
# From these, and those that failed on the way back, a stack can only be deleted (CloudFormation user guide,
# view-stack-status-codes).
_DEAD = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS")


def describe(name: str) -> Call:
    """The request for one stack, by its name or ID."""
    return Call("cloudformation", "DescribeStacks", {"StackName": name})


def find(context: Context, name: str) -> dict[str, Any] | None:
    """The stack's description, or None where there is none of that name."""
    try:
        found: dict[str, Any] = context.aws.call(describe(name))["Stacks"][0]
    except ServiceError as error:
        # CloudFormation has no code of its own for it.
        if error.code == "ValidationError" and "does not exist" in str(error):
            return None
        raise
    return found


def outputs(stack: Mapping[str, Any]) -> dict[str, str]:
    """Output -> value."""
    return {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}


def parameters(stack: Mapping[str, Any]) -> dict[str, str]:
    """Parameter -> value."""
    return {one["ParameterKey"]: one["ParameterValue"] for one in stack.get("Parameters", [])}


def put(create: Call, context: Context) -> Mapping[str, Any]:
    """Makes the stack that the CreateStack call describes, or changes the one of that name; waits until it is there.

    A parameter of an existing stack that the call does not name keeps its value.

    Returns:
        The stack's description.

    Raises:
        OutcomeError: it failed; the reason stands first. CloudFormation has undone what was done.
    """
    name = create.parameters["StackName"]
    existing = find(context, name)
    if existing is not None and existing["StackStatus"] in _DEAD:
        raise OutcomeError(f"stack {name} is {existing['StackStatus']}, which only deleting it ends")
    if existing is not None and existing["StackStatus"].endswith("IN_PROGRESS"):
        raise OutcomeError(f"stack {name} is {existing['StackStatus']}: wait until that is over")
    call = create if existing is None else _update(create, existing)
    try:
        stack_id = str(context.aws.call(call)["StackId"])
    except ServiceError as error:
        if existing is None or "No updates are to be performed" not in str(error):
            raise
        context.say(f"stack {name} is as it should be already")
        return existing
    found = _wait(context, name, stack_id)
    status = found["StackStatus"]
    if status not in _DONE:
        raise OutcomeError(f"{_reason(context, stack_id, call)}\nstack {name} is {status}")
    return found


def delete(call: Call, stack_id: str, context: Context) -> None:
    """Sends the DeleteStack call and waits until the stack is gone.

    Raises:
        OutcomeError: something of it could not be deleted; the reason stands first.
    """
    context.aws.call(call)
    status = _wait(context, call.parameters["StackName"], stack_id)["StackStatus"]
    if status != _GONE["StackStatus"]:
        raise OutcomeError(f"{_reason(context, stack_id, call)}\nstack {call.parameters['StackName']} is {status}")


def _update(create: Call, existing: Mapping[str, Any]) -> Call:
    request = {name: value for name, value in create.parameters.items() if name != "OnFailure"}
    given = {one["ParameterKey"] for one in request["Parameters"]}
    kept = [
        {"ParameterKey": key, "ParameterValue": value}
        for key, value in parameters(existing).items()
        if key not in given
    ]
    return Call("cloudformation", "UpdateStack", {**request, "Parameters": [*request["Parameters"], *kept]})


def _wait(context: Context, name: str, stack_id: str) -> Mapping[str, Any]:
    """The stack's description once it has come to rest."""
    found: Mapping[str, Any] = _GONE

    def ask() -> str | None:
        nonlocal found
        # By its ID a stack is found after its end as well, for a while.
        found = find(context, stack_id) or _GONE
        status = str(found["StackStatus"])
        return status if status.endswith("IN_PROGRESS") else None

    wait(ask, Progress(f"stack {name}"), context.sleep, every_s=_POLL_S)
    return found


def _reason(context: Context, stack_id: str, call: Call) -> str:
    """Why the first resource failed; what follows it fails because it was cancelled."""
    token = call.parameters["ClientRequestToken"]
    pages = context.aws.pages(Call("cloudformation", "DescribeStackEvents", {"StackName": stack_id}))
    failed = [
        event
        for page in pages
        for event in page["StackEvents"]
        if event.get("ClientRequestToken") == token and event.get("ResourceStatus", "").endswith("_FAILED")
    ]
    if not failed:
        return "CloudFormation gives no reason"
    # Newest first.
    first = failed[-1]
    return f"{first['LogicalResourceId']}: {first.get('ResourceStatusReason') or 'AWS gives no reason'}"
