"""What is read from disk: regular files of a limited size, and JSON that passes the schema of its kind."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliploc._documents import AnnotatedRow, DocumentError, checked, parse_json, read_bytes, read_text

ROW = {
    "picture": "a.jpg", "blake2b": "0" * 32, "status": "ok", "width": 40, "height": 30, "notes": [],
    "presence": [0.5, None], "boxes": [[0, 0, 10, 10.5]], "scores": [0.5], "fits": [1], "labels": [0], "groups": [1],
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


def test_a_file_is_read_and_lines_end_alike(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a") == "one\ntwo\nthree\n"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(read_bytes(tmp_path / "a", 11)) == 11
    with pytest.raises(OSError, match="expected at most"):
        read_bytes(tmp_path / "a", 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[" * 10**5, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_what_is_no_json_is_one_line(text, said):
    with pytest.raises(DocumentError, match=said) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_a_row_passes_its_schema():
    failed = {"picture": "a", "blake2b": "f" * 32, "status": "failed", "reason": "damaged"}
    for row in (ROW, failed, {**ROW, "picture": "\udcff.jpg"}):  # the last: bytes of a name that are not UTF-8
        assert checked(row, AnnotatedRow) is row


ROWS = {
    "no object": [ROW],
    "no status": {key: value for key, value in ROW.items() if key != "status"},
    "another status": {**ROW, "status": "fine"},
    "failed without a reason": {**ROW, "status": "failed"},
    "a digest of another length": {**ROW, "blake2b": "0"},
    "a side as text": {**ROW, "width": "40"},
    "a side of true": {**ROW, "width": True},
    "a side of 0": {**ROW, "height": 0},
    "a side of 10^400": {**ROW, "height": 10**400},
    "more scores than boxes": {**ROW, "scores": [0.5, 0.5]},
    "fewer labels": {**ROW, "labels": []},
    "a label below 0": {**ROW, "labels": [-1]},
    "a label with a fraction": {**ROW, "labels": [0.5]},
    "a presence above 1": {**ROW, "presence": [1.5]},
    "a label without presence": {**ROW, "labels": [2]},
    "a fit below 0": {**ROW, "fits": [-0.5]},
    "an infinite score": {**ROW, "scores": [float("inf")]},
    "a score that is no number": {**ROW, "scores": [float("nan")]},
    "a box of three numbers": {**ROW, "boxes": [[0, 0, 1]]},
    "a box outside": {**ROW, "boxes": [[0, 0, 41, 1]]},
    "a box of no number": {**ROW, "boxes": [[0, 0, float("nan"), 1]]},
    "a box inside out": {**ROW, "boxes": [[5, 0, 1, 1]]},
    "a group of 2": {**ROW, "groups": [2]},
    "too few masks": {**ROW, "masks": []},
    "notes as text": {**ROW, "notes": "none"},
}


@pytest.mark.parametrize("case", ROWS)
def test_a_damaged_row_does_not_pass(case):
    with pytest.raises(DocumentError) as caught:
        checked(ROWS[case], AnnotatedRow)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(sorted(ROW)), JSON)
def test_any_value_of_a_row_passes_or_does_not(key, value):
    row = {**ROW, key: value}
    try:
        checked(row, AnnotatedRow)
    except DocumentError:
        return
    json.dumps(row, allow_nan=False)  # so that exports can be written
