"""A signed bundle opens with its signer's key, and with no other key, file or byte changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, manifest_id
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.signature import open_complete_bundle, open_signed_bundle, sign_bundle, write_keys
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    private = tmp_path_factory.mktemp("keys") / "key.pem"
    return private, write_keys(private)


@pytest.fixture
def signed(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    """A signed copy of the tiny bundle, to damage."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    assert sign_bundle(folder, keys[0]).id == open_bundle(folder).id
    return folder


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and give it the id of its new content, as somebody who forges it would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def add_junk(folder: Path) -> None:
    """A graph with more at its end, and a manifest that says so."""
    graph = folder / "onnx/fusion.int8.onnx"
    graph.write_bytes(graph.read_bytes() + b"junk")
    facts = {"sha256": file_sha256(graph), "size_bytes": graph.stat().st_size}
    reseal(folder, lambda manifest: manifest["files"].update({"onnx/fusion.int8.onnx": facts}))


def test_the_signers_key_opens_it(signed: Path, keys: tuple[Path, Path]) -> None:
    assert open_signed_bundle(signed, keys[1]) == open_bundle(signed)
    assert Pipeline.from_bundle(signed, public_key=keys[1]).bundle_id == open_bundle(signed).id
    assert len((signed / SIGNATURE).read_bytes()) == 64
    before = (signed / SIGNATURE).read_bytes()
    sign_bundle(signed, keys[0])
    assert (signed / SIGNATURE).read_bytes() == before, "Ed25519 signs the same the same way"


def test_openssl_verifies_it(signed: Path, keys: tuple[Path, Path]) -> None:
    """The commands that the module's docstring gives."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys[1], "-in", signed / MANIFEST]
    done = subprocess.run([*command, "-sigfile", signed / SIGNATURE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (signed / MANIFEST).write_text((signed / MANIFEST).read_text() + " ")
    done = subprocess.run([*command, "-sigfile", signed / SIGNATURE], capture_output=True, text=True, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / SIGNATURE).unlink(), "is not signed"),
        (lambda folder: reseal(folder, lambda m: m["decision"].update(pair_threshold=0.01)), "is not that of"),
        (add_junk, "is not that of"),
        (lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + " "), "is not that of"),
        (lambda folder: (folder / SIGNATURE).write_bytes(bytes(64)), "is not that of"),
        (lambda folder: (folder / SIGNATURE).write_bytes((folder / SIGNATURE).read_bytes() + b"\n"), "no signature"),
        (lambda folder: (folder / "onnx/text.fp32.onnx").write_bytes(b"x"), "was changed"),
        (lambda folder: (folder / "onnx/planted.onnx").write_bytes(b"x"), "no manifest lists: onnx/planted.onnx"),
        (lambda folder: (folder / "planted").symlink_to(folder), "no manifest lists: planted"),
    ],
)
def test_what_was_changed_is_refused(
    damage: Callable[[Path], object], words: str, signed: Path, keys: tuple[Path, Path]
) -> None:
    damage(signed)
    with pytest.raises(BundleError, match=words) as refused:
        open_signed_bundle(signed, keys[1])
    assert refused.value.hint


def test_a_changed_byte_is_found_behind_a_good_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    graph = signed / "onnx/audio.fp32.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError, match="sha256 differs"):
        open_signed_bundle(signed, keys[1])
    with pytest.raises(BundleError, match="sha256 differs"):
        sign_bundle(signed, keys[0])


def test_a_linked_signature_is_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (signed / SIGNATURE).rename(tmp_path / "elsewhere")
    (signed / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        open_signed_bundle(signed, keys[1])


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not that of"):
        open_signed_bundle(signed, write_keys(tmp_path / "other.pem"))


def test_what_is_no_key_is_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (tmp_path / "ec.pem").write_bytes(
        elliptic.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "ec.pub").write_bytes(
        elliptic.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text").write_text("open sesame")
    private, public = keys
    for path in (tmp_path / "gone", tmp_path / "text", tmp_path / "ec.pem", public, tmp_path):
        with pytest.raises(InputError):
            sign_bundle(signed, path)
    for path in (tmp_path / "gone", tmp_path / "text", tmp_path / "ec.pub", private, tmp_path):
        with pytest.raises(InputError):
            open_signed_bundle(signed, path)


def test_an_encrypted_key_asks_for_its_password(signed: Path, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    encryption = serialization.BestAvailableEncryption(b"sesame")
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    asked: list[str] = []

    def password() -> str:
        asked.append("sesame")
        return "sesame"

    sign_bundle(signed, tmp_path / "key.pem", password=password)
    assert len(asked) == 1
    assert open_signed_bundle(signed, tmp_path / "key.pub")
    for wrong in (None, lambda: "thyme"):
        with pytest.raises(InputError, match="or its password is another"):
            sign_bundle(signed, tmp_path / "key.pem", password=wrong)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    public = write_keys(tmp_path / "key.pem")
    assert public == tmp_path / "key.pub"
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    before = (tmp_path / "key.pem").read_bytes(), public.read_bytes()
    for name in ("key.pem", "key.pub", "nowhere/key.pem"):
        with pytest.raises(InputError):
            write_keys(tmp_path / name)
    assert ((tmp_path / "key.pem").read_bytes(), public.read_bytes()) == before
    (tmp_path / "key.pem").unlink()
    with pytest.raises(InputError, match=r"key\.pub exists"):
        write_keys(tmp_path / "key.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pub"]


def test_without_a_key_nothing_is_said_about_a_signature(signed: Path) -> None:
    (signed / SIGNATURE).write_bytes(bytes(64))
    assert open_complete_bundle(signed).id == open_bundle(signed).id


def test_without_cryptography_the_extra_is_named(signed: Path, keys: tuple[Path, Path], fresh_python: Any) -> None:
    code = f"from mechm.cli import main; main(['bundle', 'verify', {str(signed)!r}, '--key', {str(keys[1])!r}])"
    done = fresh_python(code, without=["cryptography"])
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: cryptography is not installed", "hint: pip install 'mechm[sign]'"]
