"""Files that run a bundle's Llama in containers: Docker Compose and Kubernetes, with vLLM's official image.

The weights are not packed into an image: the bundle's folder is mounted read-only. The server answers only requests
with the API key, which is never written into these files.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.launch_plan import (
    API_KEY,
    OFFLINE_ENVIRONMENT,
    ServeConfig,
    engine_settings,
    server_arguments,
)
from mechm_runtime.llm.vllm.memory import read_shape

IMAGE = "vllm/vllm-openai:v0.32.0"
NAME = "mechm-llama"
MOUNTED = PurePosixPath("/bundle")
BUNDLE = "MECHM_BUNDLE"
"""Variable that names the bundle's folder on the machine that runs the containers."""
COMPOSE_FILE = "compose.yaml"
KUBERNETES_FILE = "kubernetes.yaml"
MAX_START_S = 600
"""Seconds that a server may take to load its weights before it counts as broken."""


def write_deployment(bundle: Bundle, config: ServeConfig, out: Path) -> tuple[Path, Path]:
    """Write `compose.yaml` and `kubernetes.yaml` into a folder, which is made if it is missing.

    config: only `concurrency`, `gpu_memory` and `port` are used; containers run on GPUs, in their own network.
    Raises: BundleError: the bundle has no Llama for vLLM, or a file exists or cannot be written.
    """
    if bundle.llama is None or bundle.served is None:
        raise BundleError(
            f"{bundle.folder} has no Llama for vLLM", hint=f"mechm export llm --bundle {bundle.folder} adds it"
        )
    inside = ServeConfig("0.0.0.0", 8000, "cuda", config.concurrency, config.gpu_memory, api_key=API_KEY)  # noqa: S104
    shape = read_shape(bundle.path(f"{bundle.served.folder}/config.json"))
    settings = engine_settings(shape, bundle.llama, bundle.served, inside, MOUNTED / bundle.served.folder)
    arguments = server_arguments(settings, inside)
    documents_by_file = {
        COMPOSE_FILE: [_compose(arguments, config.port)],
        KUBERNETES_FILE: [_deployment(bundle, arguments), _service(config.port)],
    }
    check_deployment_target(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, documents in documents_by_file.items():
            text = yaml.safe_dump_all(documents, sort_keys=False, width=110)  # type: ignore[no-untyped-call]
            (out / name).write_text(_heading(name) + text, encoding="utf-8")
    except OSError as error:
        raise BundleError(f"cannot write into {out}: {error.strerror or error}", hint="name another folder") from error
    return out / COMPOSE_FILE, out / KUBERNETES_FILE


def check_deployment_target(out: Path) -> None:
    """Raises: BundleError: a file that would be written exists already."""
    for name in (COMPOSE_FILE, KUBERNETES_FILE):
        if (out / name).exists():
            raise BundleError(f"{out / name} exists", hint="remove it, or name another folder")


def _heading(name: str) -> str:
    if name == COMPOSE_FILE:
        return (
            f"# {BUNDLE}=DIR {API_KEY}=... docker compose up\n"
            f"# DIR is the bundle's folder. mechm analyze --llm vllm with the same {API_KEY} asks the server.\n"
        )
    return (
        f"# kubectl create secret generic {NAME} --from-literal={API_KEY}=...\n"
        f"# The volume claim {NAME} holds the bundle's folder.\n"
    )


def _compose(arguments: list[str], port: int) -> dict[str, Any]:
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    health = {
        "test": ["CMD", "curl", "--fail", "http://localhost:8000/health"],
        "interval": "10s",
        "timeout": "5s",
        "retries": 3,
        "start_period": f"{MAX_START_S}s",
    }
    service = {
        "image": IMAGE,
        "command": arguments,
        "environment": {**OFFLINE_ENVIRONMENT, API_KEY: f"${{{API_KEY}:?set it to a secret}}"},
        # Clients on other machines need a proxy with TLS: without one, conversations travel unencrypted.
        "ports": [f"127.0.0.1:{port}:8000"],
        "volumes": [f"${{{BUNDLE}:?set it to the folder of the bundle}}:{MOUNTED}:ro"],
        "ipc": "host",
        "restart": "unless-stopped",
        "healthcheck": health,
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
    }
    return {"services": {NAME: service}}


def _deployment(bundle: Bundle, arguments: list[str]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10}
    container = {
        "name": NAME,
        "image": IMAGE,
        "args": arguments,
        "env": [
            *({"name": name, "value": value} for name, value in OFFLINE_ENVIRONMENT.items()),
            {"name": API_KEY, "valueFrom": {"secretKeyRef": {"name": NAME, "key": API_KEY}}},
        ],
        "ports": [{"containerPort": 8000}],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "startupProbe": {**probe, "failureThreshold": MAX_START_S // 10},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "bundle", "mountPath": str(MOUNTED), "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    volumes = [
        {"name": "bundle", "persistentVolumeClaim": {"claimName": NAME, "readOnly": True}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "annotations": {"mechm/bundle": bundle.id}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes},
            },
        },
    }


def _service(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": NAME}, "ports": [{"port": port, "targetPort": 8000}]},
    }
