"""Delete an endpoint with its autoscaling, configuration and model, and say what else costs money.

The endpoint is what costs; its configuration and model cost nothing but stand in the way of order. Without
--all-configs those of earlier versions stay, to go back to; with it, everything is deleted that `deploy` ever made for
the name, also when the endpoint itself is gone.

  launch.py delete dogs
  launch.py delete dogs --all-configs --yes
  launch.py delete dogs --local                    stop and forget the one that `deploy --local` started; asks nothing
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scripts.launcher import arguments as types
from scripts.launcher import costs, hosting
from scripts.launcher.commands import deploy
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError, SettingError
from scripts.launcher.local import endpoints, folders
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.waiting import Progress, wait

_POLL_S = 5.0
_NAMESPACE = "sagemaker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("name", type=types.job_name, metavar="NAME", help="name of the endpoint")
    parser.add_argument("--all-configs", action="store_true", help="earlier versions' configurations and models too")
    parser.add_argument("--local", action="store_true", help="the endpoint of this machine")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where nobody can answer")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """What is known without asking AWS; the names that only AWS knows stand as ${Operation.Field}."""
    name = arguments.name
    if arguments.local:
        folders.refuse({"--all-configs": arguments.all_configs})
        return [Call("sagemaker", "DeleteEndpoint", {"EndpointName": name})]
    config = "${DescribeEndpoint.EndpointConfigName}"
    return [
        Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}),
        Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": config}),
        Call(
            "application-autoscaling",
            "DescribeScalableTargets",
            {
                "ServiceNamespace": _NAMESPACE,
                "ResourceIds": [deploy.resource(name, "${DescribeEndpoint.ProductionVariants[].VariantName}")],
            },
        ),
        Call("sagemaker", "DeleteEndpoint", {"EndpointName": name}),
        Call("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": config}),
        Call("sagemaker", "DeleteModel", {"ModelName": "${DescribeEndpointConfig.ProductionVariants[].ModelName}"}),
    ]


def run(calls: Sequence[Call], context: Context) -> int:
    """Finds what belongs to the endpoint, asks, and deletes it."""
    arguments = context.arguments
    if arguments.local:
        here = folders.find_endpoint(arguments.name)
        if here is None:
            raise OutcomeError(folders.no_endpoint(arguments.name))
        endpoints.delete(here.name, here.image)
        context.say(f"deleted local endpoint {here.name}")
        return 0
    if not arguments.yes and not sys.stdin.isatty():
        raise SettingError("nobody is here to confirm: give --yes")
    found = list(_belonging(context))
    if not found:
        raise OutcomeError(f"nothing belongs to an endpoint {arguments.name} here; {_others(context)}")
    for call in found:
        context.say(f"  {_described(call)}")
    if not arguments.yes and not _confirmed(f"delete these {len(found)}? [y/N] "):
        context.say("nothing was deleted")
        return 1
    failures = _delete(found, context)
    print(costs.as_table(costs.running(context.aws)))
    if failures:
        raise OutcomeError("\n".join(failures))
    return 0


def _belonging(context: Context) -> Iterator[Call]:
    """The deletions, in the order in which they must happen."""
    name = context.arguments.name
    endpoint = _described_or_none(context, Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
    configs: dict[str, Mapping[str, Any] | None] = {}
    if endpoint is not None:
        yield from _autoscaling(context, [str(variant["VariantName"]) for variant in endpoint["ProductionVariants"]])
        yield Call("sagemaker", "DeleteEndpoint", {"EndpointName": name})
        configs[str(endpoint["EndpointConfigName"])] = None
    if context.arguments.all_configs:
        listed = _listed(context, "ListEndpointConfigs", "EndpointConfigs", NameContains=name)
        configs |= dict.fromkeys(hosting.versions_of(name, (str(found["EndpointConfigName"]) for found in listed)))
    models: dict[str, None] = {}
    for config in configs:
        call = Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": config})
        described = _described_or_none(context, call)
        if described is not None:
            yield Call("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": config})
            models |= dict.fromkeys(str(variant["ModelName"]) for variant in described["ProductionVariants"])
    if context.arguments.all_configs:
        listed = _listed(context, "ListModels", "Models", NameContains=name)
        models |= dict.fromkeys(hosting.versions_of(name, (str(found["ModelName"]) for found in listed)))
    for model in models:
        yield Call("sagemaker", "DeleteModel", {"ModelName": model})


def _autoscaling(context: Context, variants: Sequence[str]) -> Iterator[Call]:
    name = context.arguments.name
    for variant in variants:
        resource = deploy.resource(name, variant)
        targets = context.aws.call(
            Call(
                "application-autoscaling",
                "DescribeScalableTargets",
                {"ServiceNamespace": _NAMESPACE, "ResourceIds": [resource]},
            )
        )["ScalableTargets"]
        if not targets:
            continue
        policies = context.aws.call(
            Call(
                "application-autoscaling",
                "DescribeScalingPolicies",
                {"ServiceNamespace": _NAMESPACE, "ResourceId": resource},
            )
        )["ScalingPolicies"]
        for found in (*policies, *targets):
            keys = ("PolicyName", "ServiceNamespace", "ResourceId", "ScalableDimension")
            operation = "DeleteScalingPolicy" if "PolicyName" in found else "DeregisterScalableTarget"
            yield Call("application-autoscaling", operation, {key: found[key] for key in keys if key in found})


def _described_or_none(context: Context, call: Call) -> dict[str, Any] | None:
    try:
        return context.aws.call(call)
    except ServiceError as error:
        if error.not_found:
            return None
        raise


def _delete(calls: Sequence[Call], context: Context) -> list[str]:
    """Deletes one after the other, and goes on after a refusal; returns the refusals."""
    failures = []
    for call in calls:
        try:
            context.aws.call(call)
            if call.operation == "DeleteEndpoint":
                # "You must not delete an EndpointConfig in use by an endpoint that is live" (DeleteEndpointConfig).
                _wait_until_gone(context)
        except ServiceError as error:
            # Somebody else was quicker, which is as good.
            if not error.not_found:
                failures.append(str(error))
                continue
        context.say(f"deleted {_described(call)}")
    return failures


def _wait_until_gone(context: Context) -> None:
    name = context.arguments.name

    def ask() -> str | None:
        found = _described_or_none(context, Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}))
        return None if found is None else str(found["EndpointStatus"])

    wait(ask, Progress(f"endpoint {name}"), context.sleep, every_s=_POLL_S)


def _confirmed(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _described(call: Call) -> str:
    parameters = call.parameters
    if call.service == "application-autoscaling":
        return f"autoscaling {parameters.get('PolicyName', 'target')} of {parameters['ResourceId']}"
    kind = {"DeleteEndpoint": "endpoint", "DeleteEndpointConfig": "configuration", "DeleteModel": "model"}[
        call.operation
    ]
    return f"{kind} {next(iter(parameters.values()))}"


def _others(context: Context) -> str:
    names = [str(found["EndpointName"]) for found in _listed(context, "ListEndpoints", "Endpoints")]
    return f"endpoints here: {', '.join(names) or 'none'}"


def _listed(context: Context, operation: str, key: str, **parameters: str) -> list[dict[str, Any]]:
    return [found for page in context.aws.pages(Call("sagemaker", operation, parameters)) for found in page[key]]
