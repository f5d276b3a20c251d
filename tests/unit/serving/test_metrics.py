"""What is counted is what Prometheus reads, for one process and for several."""

import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dogbreed.errors import ServerBusyError
from dogbreed.serving.admission import Gate
from dogbreed.serving.metrics import Metrics, remove_counts


def samples(metrics):
    """(name, labels) -> value of everything but the buckets."""
    text, media_type = metrics.render()
    assert media_type.startswith("text/plain")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_requests_are_counted_by_route_and_status_and_their_time_by_route():
    metrics = Metrics()
    metrics.answered("/invocations", 200, 0.5)
    metrics.answered("/invocations", 200, 1.5)
    metrics.answered("/invocations", 503, 0.25)
    found = samples(metrics)
    assert found["dogbreed_requests_total", ("/invocations", "200")] == 2
    assert found["dogbreed_requests_total", ("/invocations", "503")] == 1
    assert found["dogbreed_request_seconds_count", ("/invocations",)] == 3
    assert found["dogbreed_request_seconds_sum", ("/invocations",)] == 2.25


def test_who_waits_and_who_runs_is_counted_and_forgotten():
    metrics, gate = Metrics(), Gate(slots=1, waiting=0)
    with metrics.passing(gate):
        assert samples(metrics)["dogbreed_running_requests", ()] == 1
        with pytest.raises(ServerBusyError), metrics.passing(gate):
            pass
    with pytest.raises(ZeroDivisionError), metrics.passing(gate):
        raise ZeroDivisionError
    found = samples(metrics)
    assert (found["dogbreed_running_requests", ()], found["dogbreed_waiting_requests", ()]) == (0, 0)


def test_a_request_before_the_gate_waits():
    metrics = Metrics()
    seen = []

    class Slow:
        def __enter__(self):
            seen.append(samples(metrics)["dogbreed_waiting_requests", ()])

        def __exit__(self, *_):
            return None

    with metrics.passing(Slow()):
        assert samples(metrics)["dogbreed_waiting_requests", ()] == 0
    assert seen == [1]


def test_what_an_engine_tells_is_counted_per_image_and_per_batch():
    metrics = Metrics()
    metrics.asked(4)
    metrics.decoded(4, 0.4)
    metrics.computed(4, 0.2)
    found = samples(metrics)
    assert found["dogbreed_request_images_sum", ()] == 4
    assert found["dogbreed_decode_seconds_count", ()] == 4
    assert found["dogbreed_decode_seconds_sum", ()] == pytest.approx(0.4)
    assert (found["dogbreed_engine_seconds_count", ()], found["dogbreed_engine_images_sum", ()]) == (1, 4)


def test_the_model_is_named():
    metrics = Metrics()
    metrics.serves({"backbone": "tiny", "classes": 3, "device": "cpu"})
    assert samples(metrics)["dogbreed_model_info", ("tiny", "3", "cpu", "", "")] == 1


def test_the_processes_of_a_server_answer_for_each_other(tmp_path):
    code = """
import sys
from pathlib import Path
from dogbreed.serving.metrics import Metrics, forget_process
folder = Path(sys.argv[1])
metrics = Metrics(folder)
metrics.answered("/ping", 200, 0.1)
metrics._running.inc()
metrics.serves({"backbone": "tiny"})
if len(sys.argv) > 2:
    forget_process(int(sys.argv[2]), folder)
print(metrics.render()[0].decode())
"""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), *arguments], env=environ, stdout=subprocess.PIPE, text=True
        )
        text = process.communicate(timeout=60)[0]
        assert process.returncode == 0
        return process.pid, text

    first, text = run()
    assert 'dogbreed_requests_total{route="/ping",status="200"} 1.0' in text
    _, text = run()
    assert 'dogbreed_requests_total{route="/ping",status="200"} 2.0' in text
    assert "dogbreed_running_requests 2.0" in text
    _, text = run(str(first))
    assert 'dogbreed_requests_total{route="/ping",status="200"} 3.0' in text  # what is counted stays
    assert "dogbreed_running_requests 2.0" in text  # what ended is not running


def test_only_the_counts_of_given_processes_are_removed(tmp_path):
    ours = ["counter_17.db", "gauge_livesum_17.db", "histogram_18.db"]
    others = ["counter_1.db", "counter_117.db", "words.db", "17.txt", "counter_17.db.txt", "counter_x.db"]
    for name in [*ours, *others]:
        (tmp_path / name).write_bytes(b"")
    remove_counts({17, 18}, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)
