"""Writing files and folders whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mechm_runtime.system.atomic_write import in_place, new_folder, put_in_place, replaced_file, write_atomically


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", ["Grüße\n", b"\x00\xff"])
def test_a_new_file_has_the_umasks_mode_and_a_replaced_one_keeps_its_own(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a"
    write_atomically(path, content)
    umask = os.umask(0)
    os.umask(umask)
    assert mode(path) == 0o666 & ~umask
    path.chmod(0o640)
    write_atomically(path, content)
    assert mode(path) == 0o640
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    write_atomically(path, content, mode=0o600)
    assert mode(path) == 0o600


def test_what_was_there_survives_a_failure_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")

    def fail_halfway() -> None:
        with replaced_file(path) as beside:
            beside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a", "old")]


def test_a_library_may_replace_the_file_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")
    before = mode(path)
    with replaced_file(path, is_synced=True) as beside:
        beside.unlink()
        beside.write_text("new")
        beside.chmod(0o400)
        beside.chmod(0o600)
    assert (path.read_text(), mode(path)) == ("new", before)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "old"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail_halfway() -> None:
        with new_folder(out) as folder:
            (folder / "a").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert not list(tmp_path.iterdir())
    with new_folder(out) as folder:
        (folder / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="not empty"), new_folder(out) as folder:
        (folder / "b").write_text("another")
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_replaced_folder_comes_back_where_what_follows_fails(tmp_path: Path) -> None:
    for name in ("out", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def fail_afterwards() -> None:
        with in_place(tmp_path / "new", tmp_path / "out"):
            assert (tmp_path / "out" / "new").exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail_afterwards()
    assert (tmp_path / "out" / "out").exists()
    assert (tmp_path / "new" / "new").exists()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "absent", tmp_path / "out")
    assert (tmp_path / "out" / "out").exists()
    put_in_place(tmp_path / "new", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
