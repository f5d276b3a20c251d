from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_test.simulator.stores import Synced


class Hosts:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.made: list[Synced] = []

    def host(self, name: str) -> tuple[Path, Synced]:
        """A host that is synced when the test says so."""
        self.made.append(Synced(self.folder / name, self.store, every_s=1000))
        return self.folder / name, self.made[-1]

    def stored(self) -> dict[str, str]:
        return {str(file.relative_to(self.store)): file.read_text() for file in self.store.rglob("*") if file.is_file()}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    for synced in made.made:
        synced.close(last=False)


def test_the_store_follows_changes_and_deletes(hosts):
    local, synced = hosts.host("one")
    (local / "deep").mkdir()
    (local / "deep" / "a").write_text("1")
    (local / "b").write_text("2")
    synced.sync()
    assert hosts.stored() == {"deep/a": "1", "b": "2"}
    (local / "b").write_text("changed")
    (local / "deep" / "a").unlink()
    synced.sync()
    assert hosts.stored() == {"b": "changed"}


def test_half_a_file_is_copied_as_it_is(hosts):
    local, synced = hosts.host("one")
    with (local / "a.tmp").open("w") as file:
        file.write("half")
        file.flush()
        synced.sync()
        assert hosts.stored() == {"a.tmp": "half"}
        file.write(" and more")
    (local / "a.tmp").rename(local / "a")
    synced.sync()
    assert hosts.stored() == {"a": "half and more"}


def test_a_start_fetches_all_and_nothing_after_it(hosts):
    first, synced = hosts.host("one")
    (first / "rank-0").write_text("one")
    synced.sync()
    second, other = hosts.host("two")
    assert (second / "rank-0").read_text() == "one"
    (second / "rank-1").write_text("two")
    other.sync()
    synced.sync()
    assert not (first / "rank-1").exists()
    assert hosts.stored() == {"rank-0": "one", "rank-1": "two"}, "what another host has put there stays"
    (second / "rank-0").unlink()
    other.sync()
    assert hosts.stored() == {"rank-1": "two"}


def test_the_last_look_is_for_those_that_are_not_lost(hosts):
    local, synced = hosts.host("one")
    (local / "a").write_text("1")
    synced.close(last=False)
    assert hosts.stored() == {}
    other, again = hosts.host("two")
    (other / "a").write_text("1")
    again.close(last=True)
    assert hosts.stored() == {"a": "1"}


def test_it_looks_by_itself(hosts, tmp_path):
    synced = Synced(tmp_path / "local", hosts.store, every_s=0.01)
    hosts.made.append(synced)
    (tmp_path / "local" / "a").write_text("1")
    while not hosts.stored():
        pass
