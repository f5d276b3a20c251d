"""A multi-model endpoint: the label and the routes, which go together."""

from __future__ import annotations

import json
from dataclasses import dataclass

from local_test.simulator.checks import pages
from local_test.simulator.checks.check import BlockedError, NotApplicableError, Outcome, check, failed, judge, passed
from local_test.simulator.checks.client import Answer, NoAnswerError, ask
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.servers import Endpoint, Server

_GROUP = "several models"
LABEL = "com.amazonaws.sagemaker.capabilities.multi-models"
_MULTI = Endpoint(multi_model=True, environment=(("SAGEMAKER_MULTI_MODEL", "true"),))
_UNKNOWN = "nobody"


@dataclass(frozen=True)
class Seen:
    """What a multi-model endpoint answered, in this order; a string tells why there was no answer."""

    empty: Answer | str
    loaded: Answer | str
    again: Answer | str
    listed: Answer | str
    described: Answer | str
    unknown: Answer | str
    unknown_invoked: Answer | str
    invoked: Answer | str
    deleted: Answer | str
    gone: Answer | str


@check(
    "serve.models-label",
    "Carries the label multi-models if, and only if, it has the routes",
    pages.MULTI_MODEL_LABEL,
    _GROUP,
)
def models_label(context: Context) -> Outcome:
    """With the label alone an endpoint of several models is created, and never works."""
    labels = context.subject.labels
    if not labels and not context.contained:
        raise NotApplicableError("the programs have no labels.json that would stand for an image's labels")
    labelled = labels.get(LABEL) == "true"
    found = _seen(context)
    routes = found is not None and isinstance(found.empty, Answer) and found.empty.status == 200
    if labelled == routes:
        return passed("labelled, and there" if labelled else "neither labelled nor there")
    return failed(
        f"{LABEL}=true, and GET /models: {found and found.empty}" if labelled else f"there; add LABEL {LABEL}=true"
    )


@check(
    "serve.models-load", "POST /models loads a model: 200, and 409 when it is loaded already", pages.MULTI_MODEL, _GROUP
)
def models_load(context: Context) -> Outcome:
    """The platform takes 409 for done."""
    found = _routes(context)
    return judge(_unlike(found.loaded, 200) or _unlike(found.again, 409, "for a second time: "))


@check("serve.models-list", "GET /models and GET /models/NAME tell what is loaded", pages.MULTI_MODEL, _GROUP)
def models_list(context: Context) -> Outcome:
    """By the names modelName and modelUrl."""
    found = _loaded(context)
    problem = _unlike(found.listed, 200) or _unlike(found.described, 200)
    if problem or isinstance(found.listed, str):
        return failed(problem or "")
    try:
        models = json.loads(found.listed.body)["models"]
        good = len(models) == 1 and models[0]["modelName"] == "one" and bool(models[0]["modelUrl"])
    except (ValueError, KeyError, TypeError, IndexError):
        good = False
    return judge(None if good else f"GET /models: {found.listed}")


@check("serve.models-unknown", "A model that is not loaded is 404", pages.MULTI_MODEL, _GROUP)
def models_unknown(context: Context) -> Outcome:
    """By GET /models/NAME and by POST /models/NAME/invoke."""
    found = _routes(context)
    return judge(_unlike(found.unknown, 404) or _unlike(found.unknown_invoked, 404, "invoked: "))


@check("serve.models-invoke", "POST /models/NAME/invoke is answered with 200", pages.MULTI_MODEL, _GROUP)
def models_invoke(context: Context) -> Outcome:
    """The profile's request."""
    return judge(_unlike(_loaded(context).invoked, 200))


@check("serve.models-delete", "DELETE /models/NAME is 200, and the model is gone", pages.MULTI_MODEL, _GROUP)
def models_delete(context: Context) -> Outcome:
    """Its memory is free when the answer comes."""
    found = _loaded(context)
    return judge(_unlike(found.deleted, 200) or _unlike(found.gone, 404, "asked for afterwards: "))


def _seen(context: Context) -> Seen | None:
    """None when it does not get ready as a multi-model endpoint."""
    return context.once("models", lambda: _look(context))


def _look(context: Context) -> Seen | None:
    unpromised_s = context.servers.unpromised_s()
    promised = context.subject.labels.get(LABEL) == "true"
    server = context.servers.tried(_MULTI, None if promised else unpromised_s)
    if server.ready_s is None:
        return None
    load = json.dumps({"model_name": "one", "url": f"{server.models}/one/model"}).encode()
    as_json = {"Content-Type": "application/json"}
    return Seen(
        empty=_ask(server, "GET", "/models"),
        loaded=_ask(server, "POST", "/models", load, as_json),
        again=_ask(server, "POST", "/models", load, as_json),
        listed=_ask(server, "GET", "/models"),
        described=_ask(server, "GET", "/models/one"),
        unknown=_ask(server, "GET", f"/models/{_UNKNOWN}"),
        unknown_invoked=_invoke(server, _UNKNOWN),
        invoked=_invoke(server, "one"),
        deleted=_ask(server, "DELETE", "/models/one"),
        gone=_ask(server, "GET", "/models/one"),
    )


def _routes(context: Context) -> Seen:
    """Raises: NotApplicableError where several models are not promised."""
    found = _seen(context)
    if context.subject.labels.get(LABEL) != "true":
        has_them = found is not None and isinstance(found.empty, Answer) and found.empty.status == 200
        if context.subject.labels or context.contained or not has_them:
            raise NotApplicableError("it carries no label for several models")
    if found is None or not isinstance(found.empty, Answer) or found.empty.status != 200:
        raise BlockedError("GET /models is not 200: see serve.models-label")
    return found


def _loaded(context: Context) -> Seen:
    found = _routes(context)
    if _unlike(found.loaded, 200):
        raise BlockedError("a model is not loaded: see serve.models-load")
    return found


def _ask(
    server: Server, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer | str:
    try:
        return ask(
            server.running.address, method, path, body=body, headers=headers, timeout_s=server.patience.request_s
        )
    except NoAnswerError as error:
        return str(error)


def _invoke(server: Server, name: str) -> Answer | str:
    try:
        return server.post(path=f"/models/{name}/invoke")
    except NoAnswerError as error:
        return str(error)


def _unlike(answer: Answer | str, status: int, when: str = "") -> str | None:
    return None if isinstance(answer, Answer) and answer.status == status else f"{when}{answer}"


CHECKS = (models_label, models_load, models_list, models_unknown, models_invoke, models_delete)
