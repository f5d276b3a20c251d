"""Folders become labels: sorted, without the prefix that is only there for sorting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed.labels import Labels


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("001.Affenpinscher", "Affenpinscher"),
        ("10_cat", "cat"),
        ("3-dog", "dog"),
        ("7 bird", "bird"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02085620_Chihuahua", "Chihuahua"),
        ("Boxer", "Boxer"),
        ("n02-not-a-synset", "n02-not-a-synset"),
        ("007", "007"),
        ("007.", "007."),
        ("3d-print", "3d-print"),
        ("Bichon_frise", "Bichon_frise"),
    ],
)
def test_the_sorting_prefix_is_dropped(folder, name):
    assert Labels.from_folders([folder]).names == (name,)


def test_folders_are_sorted_by_their_full_names():
    labels = Labels.from_folders(["010.B", "002.C", "001.A"])
    assert labels.folders == ("001.A", "002.C", "010.B")
    assert labels.names == ("A", "C", "B")
    assert len(labels) == 3


def test_two_that_would_look_alike_keep_their_full_names():
    assert Labels.from_folders(["1.cat", "2.cat", "3.dog"]).names == ("1.cat", "2.cat", "dog")


@given(st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=12))
def test_any_folders_keep_their_order_and_their_labels_are_not_empty(folders):
    labels = Labels.from_folders(folders)
    assert labels.folders == tuple(sorted(folders))
    assert len(labels.names) == len(folders)
    assert all(labels.names)


prefixes = st.sampled_from(["", "1.", "02-", "3_", "1.02-"])


@given(st.sets(st.builds(str.__add__, prefixes, st.sampled_from(["a", "b", "3_a"])), min_size=1))
def test_labels_that_people_read_are_distinct(folders):
    names = Labels.from_folders(folders).names
    assert len(set(names)) == len(names)


def test_when_a_label_would_look_like_another_full_name_all_keep_theirs():
    folders = ("1.2.cat", "2.cat", "3.cat")
    assert Labels.from_folders(folders).names == folders
