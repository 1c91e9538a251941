"""Files that are whole or not there, and values that strict JSON can hold."""

import json
import math
import os
import stat

import numpy as np
import pytest

from eqx_slm import files
from eqx_slm.files import json_ready, write_bytes_atomic, write_json_atomic, write_text_atomic


def test_writes_make_folders_and_replace_content(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert write_text_atomic(path, "eins\r\nzwei é\n") == path
    assert path.read_bytes() == "eins\r\nzwei é\n".encode()
    write_bytes_atomic(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    path = write_text_atomic(tmp_path / "atomic", "")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = write_text_atomic(tmp_path / "file", "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, failing, fail)
    with pytest.raises(OSError, match="no space"):
        write_text_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_json_holds_no_nan(tmp_path):
    value = {
        "a": [1.5, math.nan, -math.inf],
        "b": (1, None, True, "é"),
        3: np.float32(0.5),
        "n": np.array([1.0, np.inf]),
    }
    expected = {"a": [1.5, None, None], "b": [1, None, True, "é"], "3": 0.5, "n": [1.0, None], "path": str(tmp_path)}
    path = write_json_atomic(tmp_path / "x.json", value | {"path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="set"):
        json_ready({"a": {1, 2}})
