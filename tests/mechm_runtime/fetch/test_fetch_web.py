"""Bundles from a web server: whole or not at all, going on after cuts, and within limits."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, manifest_id
from mechm_runtime.bundle.signature import sign_bundle, write_keys
from mechm_runtime.errors import BundleError, InputError, MechmError
from mechm_runtime.fetch import download as downloading
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.download import Download, download, downloads_folder
from mechm_runtime.fetch.fetch_bundle import fetch_bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder: Path, change: Any) -> None:
    """Change a manifest and give it the id that it then has."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_folder_on_a_server_becomes_the_same_bundle(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    seen: list[tuple[str, int, int]] = []
    got = fetch_bundle(f"{site.url}/m", tmp_path / "out", on_progress=lambda *step: seen.append(step))
    assert got.is_new
    assert contents(got.bundle.folder) == contents(bundle)
    _, done, total = [step for step in seen if step[0] == "fetching"][-1]
    assert (
        done
        == total
        == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    )
    assert [path for path in downloads_folder().iterdir() if path.suffix == ".part"] == []
    assert fetch_bundle(f"{site.url}/m/bundle.json", tmp_path / "again").is_new


def test_the_default_bundles_place_is_where_small_goes(site: Any, bundle: Path, cache: Path) -> None:
    rewrite(bundle, lambda manifest: manifest.update(preset="small"))
    site.add_folder(bundle, "/m")
    assert fetch_bundle(f"{site.url}/m").bundle.folder == cache / "bundles" / "small"


def test_what_is_there_and_whole_is_not_fetched_again(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    out = tmp_path / "out"
    fetch_bundle(f"{site.url}/m", out)
    site.requests.clear()
    assert not fetch_bundle(f"{site.url}/m", out).is_new
    assert {path for path, _ in site.requests} == {"/m/bundle.json", "/m/bundle.sig"}
    name = next(iter(json.loads((out / MANIFEST).read_bytes())["files"]))
    (out / name).write_bytes(b"damaged")
    assert fetch_bundle(f"{site.url}/m", out).is_new
    assert contents(out) == contents(bundle)


def test_another_bundle_is_replaced_by_force_alone(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/old")
    out = tmp_path / "out"
    old = fetch_bundle(f"{site.url}/old", out).bundle.id
    rewrite(bundle, lambda manifest: manifest.update(card={}))
    site.add_folder(bundle, "/new")
    with pytest.raises(BundleError, match="holds another bundle") as caught:
        fetch_bundle(f"{site.url}/new", out)
    assert "--force" in caught.value.hint
    assert fetch_bundle(f"{site.url}/new", out, force=True).bundle.id != old


def test_a_folder_with_other_things_is_never_replaced(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="other things"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_cut_connections_go_on_where_they_stopped(
    site: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "PROGRESS_BYTES", 100)
    site.add_folder(bundle, "/m")
    n_bytes = sum(len(content) for name, content in site.files.items() if not name.endswith(MANIFEST))
    manifest = len(site.files[f"/m/{MANIFEST}"])
    site.cut_after, site.cuts = 1000, 10
    got = fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert contents(got.bundle.folder) == contents(bundle)
    assert site.cuts == 0
    ranges = [headers["range"] for _, headers in site.requests if "range" in headers]
    assert "bytes=1000-" in ranges
    assert site.bytes_sent <= n_bytes + manifest + 10 * 1000


def test_an_interrupted_fetch_goes_on_in_the_next_run(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    last = sorted(name for name in site.files if name.endswith(".onnx"))[-1]
    whole = site.files[last]
    site.statuses[last] = [404]
    with pytest.raises(BundleError, match="404"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sha256 = hashlib.sha256(whole).hexdigest()
    (downloads_folder() / f"{sha256}.part").write_bytes(whole[:2000])
    site.requests.clear()
    fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert [one.get("range") for one in site.asked(last)] == ["bytes=2000-"]
    files = {path for path, _ in site.requests if path.endswith(".onnx")}
    assert len(files) < len([name for name in site.files if name.endswith(".onnx")])


def test_a_damaged_beginning_is_fetched_again(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    name = next(name for name in site.files if name.endswith(".onnx"))
    downloads_folder().mkdir(parents=True)
    sha256 = hashlib.sha256(site.files[name]).hexdigest()
    (downloads_folder() / f"{sha256}.part").write_bytes(b"?" * 2000)
    fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


def test_a_server_without_ranges_starts_over(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    site.ranges, site.cut_after, site.cuts = False, 3000, 2
    fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


def test_a_server_that_keeps_breaking_is_given_up(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    name = next(name for name in site.files if name.endswith(".onnx"))
    site.statuses[name] = [503] * 100
    with pytest.raises(BundleError, match="503") as caught:
        fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert "goes on where it stopped" in caught.value.hint
    assert len(site.asked(name)) == web.ATTEMPTS


def test_a_changed_file_is_refused(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    name = next(name for name in site.files if name.endswith(".onnx"))
    site.files[name] = site.files[name][:-1] + b"!"
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(downloads_folder().glob(f"{hashlib.sha256(site.files[name]).hexdigest()}*"))


@pytest.mark.parametrize("claimed", [1 << 50, 5])
def test_a_claimed_size_that_differs_is_refused_before_reading(
    site: Any, bundle: Path, tmp_path: Path, claimed: int
) -> None:
    site.add_folder(bundle, "/m")
    name = next(name for name in site.files if name.endswith(".onnx"))
    site.claimed[name] = claimed
    with pytest.raises(BundleError, match="were announced"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files, name: files[name].update(size_bytes=1 << 60), "refused"),
        (lambda files, name: files[name].update(size_bytes=200 << 30), "make room"),
        (lambda files, name: files[name].update(size_bytes=-1), "damaged"),
        (lambda files, name: files[name].update(size_bytes="9"), "damaged"),
        (lambda files, name: files[name].update(sha256="../x"), "damaged"),
        (lambda files, name: files.update({"../evil": files[name]}), "leaves its folder"),
        (lambda files, name: files.update({"/home/evil": files[name]}), "leaves its folder"),
        (lambda files, name: files.update({MANIFEST: files[name]}), "itself"),
        (lambda files, name: files.update({f"f{n}": files[name] for n in range(10_001)}), "more than"),
    ],
)
def test_a_hostile_manifest_is_refused_before_anything_is_downloaded(
    site: Any, bundle: Path, tmp_path: Path, change: Any, said: str
) -> None:
    rewrite(bundle, lambda manifest: change(manifest["files"], next(iter(manifest["files"]))))
    site.add_folder(bundle, "/m")
    with pytest.raises(BundleError) as caught:
        fetch_bundle(f"{site.url}/m", tmp_path / "out")
    assert said in f"{caught.value} {caught.value.hint}"
    assert {path for path, _ in site.requests} <= {"/m/bundle.json", "/m/bundle.sig"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"<html>hello</html>", b"{}"])
def test_an_answer_that_is_no_manifest_is_an_error(site: Any, tmp_path: Path, content: bytes) -> None:
    site.files["/m/bundle.json"] = content
    with pytest.raises(BundleError):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")


def test_a_huge_manifest_is_refused(site: Any, tmp_path: Path) -> None:
    site.files["/m/bundle.json"] = b" " * (5 << 20)
    with pytest.raises(BundleError, match="larger than"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")


def test_the_asked_sha256_is_that_of_the_manifest(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out", sha256="0" * 64)
    assert fetch_bundle(f"{site.url}/m", tmp_path / "out", sha256=digest).is_new


def test_signatures_are_checked(site: Any, bundle: Path, tmp_path: Path) -> None:
    ours, theirs = (write_keys(tmp_path / f"{name}.pem") for name in ("ours", "theirs"))
    site.add_folder(bundle, "/unsigned")
    with pytest.raises(BundleError, match="not signed"):
        fetch_bundle(f"{site.url}/unsigned", tmp_path / "out", public_key=ours)
    sign_bundle(bundle, tmp_path / "ours.pem")
    site.add_folder(bundle, "/m")
    with pytest.raises(BundleError, match="signature"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out", public_key=theirs)
    assert not (tmp_path / "out").exists()
    got = fetch_bundle(f"{site.url}/m", tmp_path / "out", public_key=ours)
    assert (got.bundle.folder / SIGNATURE).is_file()
    assert not fetch_bundle(f"{site.url}/m", tmp_path / "out", public_key=ours).is_new


def test_redirects_are_followed_on_this_machine(site: Any, other_site: Any, bundle: Path, tmp_path: Path) -> None:
    other_site.add_folder(bundle, "/m")
    site.redirects = {path: f"{other_site.url}{path}" for path in other_site.files}
    address = site.url.replace("//", "//anna:secret@")
    fetch_bundle(f"{address}/m", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert all("authorization" in headers for headers in site.asked("/m/bundle.json"))
    assert not any("authorization" in headers for _, headers in other_site.requests)


@pytest.mark.parametrize(
    "target", ["http://models.example/bundle.json", "file:///etc/passwd", "ftp://models.example/x", "https:///x"]
)
def test_redirects_elsewhere_need_https(site: Any, tmp_path: Path, target: str) -> None:
    site.redirects["/m/bundle.json"] = target
    with pytest.raises(MechmError, match=r"redirects to|answers 302"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")


def test_endless_redirects_end(site: Any, tmp_path: Path) -> None:
    site.redirects["/m/bundle.json"] = f"{site.url}/m/bundle.json"
    with pytest.raises(BundleError, match="answers 302"):
        fetch_bundle(f"{site.url}/m", tmp_path / "out")


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/m",
        "http://localhost.evil.example/m",
        "http://127.0.0.1.evil.example/m",
        "http://127.0.0.1@evil.example/m",
        "https://",
        "https://[x/m",
        "https://host:port/m",
        "https://host/a b",
    ],
)
def test_addresses_that_anybody_could_answer_for_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fetch_bundle(url, tmp_path / "out")


def test_a_web_page_may_not_redirect_to_this_machine() -> None:
    with pytest.raises(InputError, match="this machine"):
        web.check_url("http://127.0.0.1:9/x", came_from="https://models.example/x")


def test_messages_hold_no_credentials(site: Any, tmp_path: Path) -> None:
    address = site.url.replace("//", "//anna:secret@") + "/m?sig=secret#secret"
    for source in (
        address,
        "http://anna:secret@models.example/m?sig=secret",
        "https://anna:secret@host:port/secret-not",
    ):
        with pytest.raises(MechmError) as caught:
            fetch_bundle(source.replace("/secret-not", ""), tmp_path / "out")
        assert "secret" not in f"{caught.value} {caught.value.hint}"
        assert "anna" not in f"{caught.value} {caught.value.hint}"


def test_an_address_without_a_bundle_says_so(site: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"neither bundle\.json nor an OCI layout"):
        fetch_bundle(f"{site.url}/nothing", tmp_path / "out")


def test_a_closed_port_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read") as caught:
        fetch_bundle("http://127.0.0.1:9/m", tmp_path / "out")
    assert caught.value.hint


def test_a_trickle_is_given_up(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/slow"], site.piece = b"x" * 100, 10
    monkeypatch.setattr(web, "TIMEOUT_S", 5.0)
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(downloading.time, "monotonic", lambda: next(clock))
    item = Download(f"{site.url}/slow", lambda h: web.open_url(f"{site.url}/slow", h), None, None, 1000)
    with pytest.raises(BundleError, match="bytes in 7 s"):
        download(item, lambda _: None)


def test_two_processes_do_not_write_into_one_file(site: Any) -> None:
    site.files["/f"] = b"x" * 5000
    item = Download(f"{site.url}/f", lambda h: web.open_url(f"{site.url}/f", h), 5000, "0" * 64, 5000)
    downloads_folder().mkdir(parents=True)
    with (
        downloading._locked(downloads_folder() / f"{item.key}.part"),
        pytest.raises(BundleError, match="another process"),
    ):
        download(item, lambda _: None)


def test_a_download_of_unknown_hash_goes_on_only_where_the_file_is_the_same(site: Any) -> None:
    site.files["/f"] = b"a" * 5000
    item = Download(f"{site.url}/f", lambda h: web.open_url(f"{site.url}/f", h), None, None, 10_000)
    site.cut_after, site.cuts = 100, 100
    with pytest.raises(BundleError, match="are kept"):
        download(item, lambda _: None)
    site.cuts, site.files["/f"] = 0, b"b" * 5000
    assert download(item, lambda _: None).read_bytes() == b"b" * 5000


def test_threads_that_fetch_the_same_bundle_leave_a_whole_one(site: Any, bundle: Path, tmp_path: Path) -> None:
    site.add_folder(bundle, "/m")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            fetch_bundle(f"{site.url}/m", tmp_path / "out", force=True)
        except MechmError:
            pass  # another one was at it
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    fetch_bundle(f"{site.url}/m", tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == contents(bundle)
    assert shutil.which("true") is None or not list(tmp_path.glob(".out.*"))
