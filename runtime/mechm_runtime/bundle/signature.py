"""Sign bundles, and open only those that a trusted key has signed.

`bundle.sig` is the plain Ed25519 signature (RFC 8032), 64 bytes, of the bytes of `bundle.json`. That lists the sha256
of every other file, so the signature holds for the whole bundle. Keys are PEM files as OpenSSL writes and reads them;
without this library:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub
    openssl pkeyutl -sign -rawin -inkey key.pem -in bundle.json -out bundle.sig
    openssl pkeyutl -verify -rawin -pubin -inkey key.pub -in bundle.json -sigfile bundle.sig

Nothing here says whom a key belongs to: hand the public one over by a way that you trust.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, Bundle, foreign_files
from mechm_runtime.bundle.open import inside, open_bundle
from mechm_runtime.errors import BundleError, InputError, MissingExtraError
from mechm_runtime.system.atomic_write import write_atomically
from mechm_runtime.system.progress import Progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1 << 16


def write_keys(private: Path) -> Path:
    """Make a pair of keys: the private one in `private`, readable by its owner alone, the public one beside it.

    Returns: the public key's file, with the suffix `.pub`.
    Raises: InputError: one of them exists or cannot be written.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = private.with_suffix(".pub")
    if private == public:
        raise InputError(f"{private} is where the public key would lie", hint="give a name that ends in .pem")
    for path in (private, public):
        if path.exists():
            raise InputError(f"{path} exists", hint="give another name: a key that is overwritten is lost")
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shared = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        for path, mode, content in ((public, 0o644, shared), (private, 0o600, secret)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="give another --out") from error
    return public


def sign_bundle(
    folder: Path,
    private_key: Path,
    *,
    password: Callable[[], str] | None = None,
    on_progress: Progress | None = None,
) -> Bundle:
    """Sign a bundle that is whole and has nothing foreign in its folder; an older signature is replaced.

    private_key: PEM, PKCS #8. password: asked where the key is encrypted.
    Raises: InputError: no such key. BundleError: damaged, or it cannot be written. MissingExtraError.
    """
    key = _private_key(private_key, password)
    bundle = open_complete_bundle(folder, on_progress=on_progress)
    try:
        write_atomically(bundle.folder / SIGNATURE, key.sign(manifest_bytes(bundle)))
    except OSError as error:
        raise BundleError(f"{bundle.folder} cannot be written: {error.strerror}") from error
    return bundle


def open_complete_bundle(folder: Path | str | None, *, on_progress: Progress | None = None) -> Bundle:
    """Open a bundle that holds its own files alone.

    Raises: BundleError: as `open_bundle`, or something else lies in its folder.
    """
    bundle = open_bundle(folder, on_progress=on_progress)
    if foreign := foreign_files(bundle.folder, bundle.manifest):
        raise BundleError(
            f"{bundle.folder} holds what no manifest lists: {foreign[0]}", hint="move it away: nobody vouches for it"
        )
    return bundle


def open_signed_bundle(folder: Path | str | None, public_key: Path, *, on_progress: Progress | None = None) -> Bundle:
    """Open a bundle that a key has signed, all its files included.

    folder: as for `open_bundle`. public_key: PEM.
    Raises: InputError: no such key. BundleError: it is not signed, not by this key, or changed since.
        MissingExtraError.
    """
    key = _public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    bundle = open_bundle(folder, check_hashes=False)
    signature = read_signature(bundle)
    if signature is None:
        raise BundleError(f"{bundle.folder} is not signed", hint="mechm bundle sign DIR --key FILE signs it")
    try:
        key.verify(signature, manifest_bytes(bundle))
    except InvalidSignature as error:
        raise BundleError(
            f"the signature of {bundle.folder} is not that of {public_key} on this {MANIFEST}",
            hint="it was signed with another key, or changed since: get it again from where you trust it",
        ) from error
    signed = bundle.manifest
    bundle = open_complete_bundle(bundle.folder, on_progress=on_progress)
    if bundle.manifest != signed:
        raise BundleError(f"{MANIFEST} changed while it was checked", hint="try again")
    return bundle


def read_signature(bundle: Bundle) -> bytes | None:
    """The 64 bytes of a bundle's signature, unchecked; None where it is not signed.

    Raises: BundleError: what lies there is no signature.
    """
    path = inside(bundle.folder, SIGNATURE)
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{SIGNATURE} cannot be read: {error.strerror}") from error
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{SIGNATURE} is no signature, which has {SIGNATURE_BYTES} bytes", hint="mechm bundle sign DIR --key FILE"
        )
    return signature


def manifest_bytes(bundle: Bundle) -> bytes:
    """The manifest's bytes, which are still those that the bundle was opened with.

    Raises: BundleError: they are not.
    """
    content = (bundle.folder / MANIFEST).read_bytes()
    if json.loads(content) != bundle.manifest:
        raise BundleError(f"{MANIFEST} changed while it was read", hint="try again")
    return content


def _private_key(path: Path, password: Callable[[], str] | None) -> Ed25519PrivateKey:
    serialization = _serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = _read_key(path)
    try:
        try:
            key = serialization.load_pem_private_key(content, None)
        except TypeError:  # the library's way to say that it is encrypted
            if password is None:
                raise
            key = serialization.load_pem_private_key(content, password().encode())
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} holds no private key that can be read, or its password is another",
            hint="mechm bundle keygen --out key.pem makes one",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is no Ed25519 key", hint="mechm bundle keygen --out key.pem makes one")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    serialization = _serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} holds no public key in PEM", hint="openssl pkey -in key.pem -pubout -out key.pub extracts it"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is no Ed25519 key", hint="give the .pub file that mechm bundle keygen wrote")
    return key


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise InputError(f"the key {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_KEY_BYTES:
        raise InputError(f"{path} is larger than any key")
    return content


def _serialization() -> ModuleType:
    """cryptography's module.

    Raises: MissingExtraError.
    """
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingExtraError("cryptography", extra="sign") from error
    return serialization
