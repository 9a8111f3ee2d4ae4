"""The command that serves: safe by default, no secret on the command line, nothing sent anywhere."""

from __future__ import annotations

import pytest

from mechm_runtime.errors import InputError
from mechm_runtime.llm.vllm.launch_plan import ServeConfig, is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.example.org", ""])  # noqa: S104
def test_who_has_no_key_listens_to_this_machine_alone(host: str) -> None:
    assert not is_loopback(host)
    for key in (None, ""):
        with pytest.raises(InputError, match="without an API key"):
            ServeConfig(host, api_key=key)
    assert "open sesame" not in repr(ServeConfig(host, api_key="open sesame"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert ServeConfig(host).api_key is None


@pytest.mark.parametrize(
    "settings", [{"port": 0}, {"port": 70_000}, {"concurrency": 0}, {"gpu_memory": 0.0}, {"gpu_memory": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        ServeConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device"):
        ServeConfig(device="tpu")


@pytest.mark.parametrize("settings", [{"step_tokens": 16}, {"step_tokens": 64, "concurrency": 65}])
def test_a_step_that_no_prompt_fits_into_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="tokens a step"):
        ServeConfig(**settings)  # type: ignore[arg-type]
