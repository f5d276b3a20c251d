"""CloudWatch's embedded metric format: a log line that CloudWatch Logs turns into metrics.

Source: Amazon CloudWatch user guide, CloudWatch_Embedded_Metric_Format_Specification.
"""

from __future__ import annotations

_METRICS = (
    ("Invocations", "Count"),
    ("Invocation4XXErrors", "Count"),
    ("Invocation5XXErrors", "Count"),
    ("Images", "Count"),
    ("Latency", "Milliseconds"),
)


def invocation(
    namespace: str, *, route: str, status: int, images: int, elapsed_ms: float, request_id: str, now_s: float
) -> dict[str, object]:
    """The document of one request; printed as one line of JSON it becomes five metrics with the route as dimension.

    Args:
        namespace: CloudWatch namespace.
        route: pattern of the route, such as ``/invocations``.
        status: HTTP status of the answer.
        images: in the request.
        elapsed_ms: milliseconds until the answer.
        request_id: found in the log beside the metrics; no dimension, of which there may only be few values.
        now_s: seconds since 1970.
    """
    return {
        "_aws": {
            "Timestamp": int(now_s * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": namespace,
                    "Dimensions": [["Route"]],
                    "Metrics": [{"Name": name, "Unit": unit} for name, unit in _METRICS],
                }
            ],
        },
        "Route": route,
        "Invocations": 1,
        "Invocation4XXErrors": int(400 <= status < 500),
        "Invocation5XXErrors": int(status >= 500),
        "Images": images,
        "Latency": round(elapsed_ms, 3),
        "Status": status,
        "RequestId": request_id,
    }
