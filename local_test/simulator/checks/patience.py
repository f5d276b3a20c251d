"""How long is waited for what. The platform's own limits are the defaults; tests are less patient."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Seconds, but for the last two.

    Args:
        train_s: for a job of the profile to end.
        stop_train_s: between SIGTERM and SIGKILL for a job (StopTrainingJob).
        progress_s: for the first objective, or the first checkpoint, of a long job, at most.
        blind_s: after which a long job is stopped when nothing tells that it has begun.
        together_s: between the ends of the hosts of a job.
        ready_s: for /ping to be 200 (ContainerStartupHealthCheckTimeoutInSeconds of 8 minutes).
        broken_s: for which a server without a usable model is watched, if it took less to get ready with a good one.
        ping_s: for /ping to answer.
        accept_s: for a connection to be accepted.
        request_s: for an answer.
        settle_s: for a request to be taken into hand, and for a signal to be heard.
        stop_serve_s: between SIGTERM and SIGKILL for an endpoint.
        notice_s: that others may take to notice that a process is gone, and to leave for that reason.
        recover_s: for the service to be back when one of its processes was killed.
        repeats_s: for them.
        load_s: for which many clients ask at once.
        clients: so many.
        repeats: requests between two looks at the memory, at most.
    """

    train_s: float = 900.0
    stop_train_s: float = 120.0
    progress_s: float = 300.0
    blind_s: float = 20.0
    together_s: float = 15.0
    ready_s: float = 480.0
    broken_s: float = 3.0
    ping_s: float = 2.0
    accept_s: float = 0.25
    request_s: float = 60.0
    settle_s: float = 1.0
    stop_serve_s: float = 30.0
    notice_s: float = 3.0
    recover_s: float = 30.0
    repeats_s: float = 30.0
    load_s: float = 3.0
    clients: int = 8
    repeats: int = 200
