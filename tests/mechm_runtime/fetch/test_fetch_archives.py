"""Bundles in archives: only listed files are written, and nothing that an archive claims is believed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechm_export.deployment.oci import write_layout
from mechm_export.deployment.wheel import write_wheel
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.errors import BundleError, InputError, MechmError
from mechm_runtime.fetch import archive as archives
from mechm_runtime.fetch.download import downloads_folder
from mechm_runtime.fetch.fetch_bundle import fetch_bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pack(bundle: Path, kind: str, path: Path) -> Path:
    if kind == "whl":
        return write_wheel(bundle, path.parent)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in contents(bundle).items():
                made.writestr(f"b/{name}", content)
        return path
    if kind == "oci.tar":
        write_layout(bundle, path, as_tar=True)
        return path
    with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as tar:
        tar.add(bundle, arcname="." if kind == "tgz" else "some/folder")
    return path


KINDS = ("tar", "tar.gz", "tgz", "zip", "whl", "oci.tar")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_this_machine_is_unpacked(bundle: Path, tmp_path: Path, kind: str) -> None:
    path = pack(bundle, kind, tmp_path / f"made.{kind}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(str(path), tmp_path / "out", sha256="1" * 64)
    fetch_bundle(str(path), tmp_path / "out", sha256=digest)
    assert contents(tmp_path / "out") == contents(bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_on_a_server_is_unpacked(site: Any, bundle: Path, tmp_path: Path, kind: str) -> None:
    path = pack(bundle, kind, tmp_path / f"made.{kind}")
    site.files[f"/{path.name}"] = path.read_bytes()
    site.cut_after, site.cuts = 4000, 2
    fetch_bundle(f"{site.url}/{path.name}?token=1", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert list(downloads_folder().iterdir()) == []


def test_an_archive_that_was_fetched_is_not_downloaded_again(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.files["/b.tar"] = pack(bundle, "tar", tmp_path / "b.tar").read_bytes()
    digest = hashlib.sha256(site.files["/b.tar"]).hexdigest()
    assert fetch_bundle(f"{site.url}/b.tar", tmp_path / "out", sha256=digest).is_new
    assert not fetch_bundle(f"{site.url}/b.tar", tmp_path / "out", sha256=digest).is_new
    assert len(site.asked("/b.tar")) == 1
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(f"{site.url}/b.tar", tmp_path / "other", sha256="2" * 64)


def tar_with(bundle: Path, path: Path, change: Callable[[tarfile.TarInfo], tarfile.TarInfo | None]) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(bundle, arcname="b", filter=change)
    return path


def test_links_devices_and_foreign_paths_are_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    listed = next(iter(json.loads((bundle / MANIFEST).read_bytes())["files"]))

    def as_type(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
        def change(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            if entry.name == f"b/{listed}":
                entry.type, entry.linkname, entry.size = kind, target, 0
            return entry

        return change

    for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "b/bundle.json"), (tarfile.FIFOTYPE, "")):
        path = tar_with(bundle, tmp_path / "links.tar", as_type(kind, target))
        with pytest.raises(BundleError, match="a link or a special file"):
            fetch_bundle(str(path), tmp_path / "out")
    outside = str(tmp_path / "outside")
    path = tar_with(bundle, tmp_path / "more.tar", lambda entry: entry)
    with tarfile.open(path, "a") as tar:
        for name in ("../escaped", outside, "b/../../escaped"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"evil"))
    fetch_bundle(str(path), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert not (tmp_path / "escaped").exists()
    assert not Path(outside).exists()


def test_a_link_in_a_zip_is_refused(bundle: Path, tmp_path: Path) -> None:
    listed = next(iter(json.loads((bundle / MANIFEST).read_bytes())["files"]))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as made:
        for name, content in contents(bundle).items():
            info = zipfile.ZipInfo(name)
            if name == listed:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            made.writestr(info, content)
    with pytest.raises(BundleError, match="a link or a special file"):
        fetch_bundle(str(tmp_path / "b.zip"), tmp_path / "out")


def test_an_archive_that_unpacks_to_far_more_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("zeros")
        entry.size = 64 << 20
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
        tar.add(bundle, arcname="b")
    with pytest.raises(BundleError, match="unpacks to more"):
        fetch_bundle(str(tmp_path / "bomb.tar.gz"), tmp_path / "out")


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 7 << 30
    path = tmp_path / "pax.tar.gz"
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)))
    with pytest.raises(BundleError, match="unpacks to more"):
        fetch_bundle(str(path), tmp_path / "out")


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 50)
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for n in range(60):
            tar.addfile(tarfile.TarInfo(f"f{n}"))
    with pytest.raises(BundleError, match="more than 50 entries"):
        fetch_bundle(str(tmp_path / "many.tar"), tmp_path / "out")


def test_a_zip_that_lies_about_a_size_is_refused(bundle: Path, tmp_path: Path) -> None:
    listed = next(iter(json.loads((bundle / MANIFEST).read_bytes())["files"]))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in contents(bundle).items():
            made.writestr(name, content + bytes(1 << 20) if name == listed else content)
    with pytest.raises(BundleError, match="bytes, not"):
        fetch_bundle(str(tmp_path / "b.zip"), tmp_path / "out")


def test_two_bundles_and_none_are_refused(bundle: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        tar.add(bundle, arcname="a")
        tar.add(bundle, arcname="b")
    with pytest.raises(BundleError, match="holds 2 bundles"):
        fetch_bundle(str(tmp_path / "two.tar"), tmp_path / "out")
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(BundleError, match="holds no bundle"):
        fetch_bundle(str(tmp_path / "none.tar"), tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "oci.tar"])
def test_damaged_archives_are_errors_of_ours(bundle: Path, tmp_path: Path, kind: str) -> None:
    whole = pack(bundle, kind, tmp_path / f"made.{kind}").read_bytes()
    path = tmp_path / f"damaged.{kind}"
    for n in range(40):
        position = n * len(whole) // 40
        for damaged in (whole[:position], whole[:position] + b"\xff" * 32 + whole[position + 32 :]):
            path.write_bytes(damaged)
            try:
                fetch_bundle(str(path), tmp_path / "out", force=True)
            except MechmError:
                continue
            assert contents(tmp_path / "out") == contents(bundle)


def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("hello")
    with pytest.raises(BundleError, match="no archive"):
        fetch_bundle(str(tmp_path / "b.tar"), tmp_path / "out")


def test_a_folder_and_a_layout_of_this_machine_are_taken(bundle: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = write_layout(bundle, layout).removeprefix("sha256:")
    fetch_bundle(str(bundle), tmp_path / "a")
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(str(layout), tmp_path / "b", sha256="3" * 64)
    fetch_bundle(str(layout), tmp_path / "b", sha256=digest)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(bundle)


def test_a_linked_file_in_a_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    listed = bundle / next(iter(json.loads((bundle / MANIFEST).read_bytes())["files"]))
    moved = tmp_path / "elsewhere"
    listed.rename(moved)
    listed.symlink_to(moved)
    with pytest.raises(BundleError, match="link"):
        fetch_bundle(str(bundle), tmp_path / "out")


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file, address"):
        fetch_bundle(str(tmp_path / "nothing.tar"), tmp_path / "out")
