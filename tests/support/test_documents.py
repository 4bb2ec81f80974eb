"""What is read from disk: files of a limited size, and JSON."""

import pytest

from cliploc.support.documents import DocumentError, parse_json, read_bytes, read_text


def test_a_file_is_read_and_lines_end_alike(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a") == "one\ntwo\nthree\n"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(read_bytes(tmp_path / "a", 11)) == 11
    with pytest.raises(OSError, match="expected at most"):
        read_bytes(tmp_path / "a", 10)


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_what_is_no_json_is_one_line(text, message):
    with pytest.raises(DocumentError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200
