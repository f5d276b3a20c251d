"""The registry of a multi-model endpoint: who is loaded, who is in use, and what fits."""

import contextlib
import gc
import threading
import weakref

import pytest

from dogbreed.errors import (
    BundleError,
    ModelConflictError,
    ModelNotFoundError,
    NotReadyError,
    OutOfMemoryError,
    RequestError,
    ServerBusyError,
    TookTooLongError,
)
from dogbreed.serving.models import ModelRegistry

PATIENCE_S = 30


class Model:
    def __init__(self, folder):
        self.folder = folder
        self.error = None

    def status(self):
        return None

    def predict(self, images, check=None):
        if check is not None:
            check()
        if self.error is not None:
            raise self.error
        return [self.folder.name, *images]


class Machine:
    """What the registry is given, and what it did with it."""

    def __init__(self, root):
        self.root = root
        self.opened = []
        self.released = 0
        self.available = 10**9
        self.error = None
        self.time = 0.0

    def open(self, folder):
        if self.error is not None:
            raise self.error
        model = Model(folder)
        self.opened.append(weakref.ref(model))
        return model

    def release(self):
        gc.collect()
        self.released += 1

    def folder(self, name, size=100):
        folder = self.root / name / "model"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_bytes(b"x" * size)
        return str(folder)

    def clock(self):
        self.time += 1
        return self.time

    def registry(self, **settings):
        return ModelRegistry(
            self.open,
            root=self.root,
            release=self.release,
            available_bytes=lambda: self.available,
            clock=self.clock,
            **settings,
        )


@pytest.fixture
def machine(tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    return Machine(root)


@pytest.fixture
def models(machine):
    return machine.registry(patience_s=0.05)


def test_a_model_is_loaded_used_and_deleted(machine, models):
    url = machine.folder("a")
    models.load("a", url)
    assert (models.describe("a").name, models.describe("a").url) == ("a", url)
    assert models.find("a").status() is None
    assert models.find("a").predict([b"1"]) == ["model", b"1"]
    models.delete("a")
    for ask in (models.find, models.describe, models.delete):
        with pytest.raises(ModelNotFoundError, match="no model named 'a' is loaded"):
            ask("a")
    models.load("a", url)
    assert models.count() == 1


def test_a_model_is_handed_what_may_end_the_request(machine, models):
    models.load("a", machine.folder("a"))

    def late():
        raise TookTooLongError("too late")

    with pytest.raises(TookTooLongError):
        models.find("a").predict([b"1"], late)


def test_memory_is_free_when_a_delete_returns(machine, models):
    models.load("a", machine.folder("a"))
    assert machine.opened[0]() is not None
    models.delete("a")
    assert machine.opened[0]() is None
    assert machine.released == 1


def test_loading_twice_is_a_conflict(machine, models):
    models.load("a", machine.folder("a"))
    with pytest.raises(ModelConflictError) as caught:
        models.load("a", machine.folder("a"))
    assert caught.value.status == 409


def test_a_model_that_is_being_loaded_is_a_conflict_and_not_ready(machine):
    begun, go_on = threading.Event(), threading.Event()

    def open_slowly(folder):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return Model(folder)

    machine.open = open_slowly
    models = machine.registry()
    thread = threading.Thread(target=models.load, args=("a", machine.folder("a")))
    thread.start()
    assert begun.wait(PATIENCE_S)
    with pytest.raises(ModelConflictError):
        models.load("a", machine.folder("a"))
    with pytest.raises(ModelConflictError):
        models.delete("a")
    with pytest.raises(NotReadyError):
        models.find("a").predict([])
    assert "being loaded" in models.find("a").status()
    assert models.page() == ([], None)
    go_on.set()
    thread.join(PATIENCE_S)
    assert models.find("a").predict([]) == ["model"]


@pytest.mark.parametrize(
    "url", ["/", "/etc", "..", "{root}/../outside", "{root}/link", "{root}/absent", "\0", "x" * 5000]
)
def test_no_folder_outside_is_opened(machine, models, url):
    (machine.root.parent / "outside").mkdir()
    (machine.root / "link").symlink_to(machine.root.parent / "outside")
    with pytest.raises(RequestError, match="is not a folder below") as caught:
        models.load("a", url.format(root=machine.root))
    assert caught.value.status == 400
    assert machine.opened == []


@pytest.mark.parametrize("name", ["", "x" * 1025])
def test_a_name_has_a_length(machine, models, name):
    with pytest.raises(RequestError, match="model_name must have 1 to 1024 characters"):
        models.load(name, machine.folder("a"))


@pytest.mark.parametrize("name", ["a\ud800b", "\udcff"])
def test_a_name_that_no_path_can_hold_is_refused(machine, models, name):
    with pytest.raises(RequestError, match="is no text: it holds half of a character's code") as caught:
        models.load(name, machine.folder("a"))
    assert caught.value.status == 400
    assert models.page() == ([], None)


@pytest.mark.parametrize("name", ["a/b", "../..", "ünï", "a b", "invoke", "\U0001f436"])
def test_a_name_is_opaque(machine, models, name):
    models.load(name, machine.folder("a"))
    assert models.find(name).predict([]) == ["model"]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BundleError("holds no bundle.json"), RequestError, "model 'a' cannot be loaded: holds no bundle.json"),
        (MemoryError(), OutOfMemoryError, "not enough memory to load model 'a'"),
        (RuntimeError("CUDA out of memory. Tried to"), OutOfMemoryError, "not enough memory"),
        (BundleError("x: DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError, "not enough memory"),
        (RuntimeError("a fault"), RuntimeError, "a fault"),
    ],
)
def test_a_load_that_fails_leaves_nothing_behind(machine, models, error, kind, message):
    machine.error = error
    with pytest.raises(kind, match=message):
        models.load("a", machine.folder("a"))
    assert machine.released == 1
    machine.error = None
    models.load("a", machine.folder("a"))


@pytest.mark.parametrize("copies", [1, 2])
def test_what_does_not_fit_into_memory_is_a_507(machine, copies):
    models = machine.registry(copies=copies)
    needed = (3 + copies) * 100 + 128 * 2**20
    machine.available = needed - 1
    with pytest.raises(OutOfMemoryError, match=f"takes {needed} bytes, and {needed - 1} are available") as caught:
        models.load("a", machine.folder("a"))
    assert caught.value.status == 507
    machine.available = needed
    models.load("a", machine.folder("a"))


def test_what_does_not_fit_into_the_budget_is_a_507_and_evicts_nothing(machine):
    models = machine.registry(budget_bytes=250)
    models.load("a", machine.folder("a"))
    models.load("b", machine.folder("b"))
    with pytest.raises(OutOfMemoryError, match="loaded models have 200 bytes and this one 100; 250 are allowed"):
        models.load("c", machine.folder("c"))
    assert models.count() == 2
    models.delete("a")
    models.load("c", machine.folder("c"))


def test_where_a_setting_says_so_the_least_recently_used_goes(machine):
    models = machine.registry(budget_bytes=250, evict=True)
    models.load("a", machine.folder("a"))
    models.load("b", machine.folder("b"))
    models.find("a").predict([])
    models.load("c", machine.folder("c"))
    assert [model.name for model in models.page()[0]] == ["a", "c"]
    with pytest.raises(OutOfMemoryError):
        models.load("d", machine.folder("d", size=251))


def test_a_model_in_use_is_not_evicted(machine):
    models = machine.registry(budget_bytes=150, evict=True)
    models.load("a", machine.folder("a"))
    with models.lend("a"), pytest.raises(OutOfMemoryError):
        models.load("b", machine.folder("b"))
    models.load("b", machine.folder("b"))


def test_a_delete_waits_for_predictions_in_hand_and_nobody_new_gets_the_model(machine):
    models = machine.registry(patience_s=PATIENCE_S)
    models.load("a", machine.folder("a"))
    with models.lend("a"):
        thread = threading.Thread(target=models.delete, args=("a",))
        thread.start()
        while True:
            with contextlib.suppress(ModelConflictError):
                try:
                    models.describe("a")
                except ModelNotFoundError:
                    break
        with pytest.raises(ModelConflictError):
            models.load("a", machine.folder("a"))
        assert thread.is_alive()
    thread.join(PATIENCE_S)
    assert models.count() == 0


def test_a_prediction_that_does_not_end_keeps_its_model(machine, models):
    models.load("a", machine.folder("a"))
    with models.lend("a"), pytest.raises(ServerBusyError, match=r"has not ended in 0\.05 seconds"):
        models.delete("a")
    assert models.find("a").predict([]) == ["model"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("CUDA out of memory"), OutOfMemoryError),
        (RuntimeError("a fault"), RuntimeError),
    ],
)
def test_a_prediction_without_memory_is_a_507(machine, models, error, kind):
    models.load("a", machine.folder("a"))
    machine.opened[0]().error = error
    with pytest.raises(kind):
        models.find("a").predict([])


def test_models_are_listed_by_pages(machine, models):
    for name in ("c", "ä/b", "a", "b"):
        models.load(name, machine.folder("a"))
    first, token = models.page(size=3)
    assert [model.name for model in first] == ["a", "b", "c"]
    models.delete("c")  # the token outlives the model that it was made of
    rest, end = models.page(token, size=3)
    assert ([model.name for model in rest], end) == (["ä/b"], None)
    assert models.page(size=3)[1] is None
    for bad in ("?", "////", "é"):
        with pytest.raises(RequestError, match="next_page_token"):
            models.page(bad)


def test_load_delete_and_invoke_at_the_same_time(machine):
    models = machine.registry(patience_s=PATIENCE_S)
    faults = []
    urls = [machine.folder(f"m{number}") for number in range(3)]

    def churn(number):
        for turn in range(60):
            name = f"m{(number + turn) % 3}"
            for act in (
                lambda name=name: models.load(name, urls[int(name[1])]),
                lambda name=name: models.find(name).predict([b"1"]),
                lambda name=name: models.delete(name),
            ):
                try:
                    act()
                except (ModelConflictError, ModelNotFoundError, NotReadyError):
                    pass
                except Exception as error:
                    faults.append(error)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert faults == []
    for model in models.page()[0]:
        models.delete(model.name)
    gc.collect()
    assert [one for one in machine.opened if one() is not None] == []
