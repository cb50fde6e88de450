"""The files of deploy/ agree with the settings and the pages. ``make test-image`` builds and runs them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from kernelsvc.settings import TABLE, Settings, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "howto" / "deploy.md").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_nginx_has_the_block_of_the_page() -> None:
    block = re.search(r"^```nginx\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    text = block[1].replace("    # server unix:/run/kernelsvc-http.sock;\n", "")
    for page, here in (
        ("127.0.0.1:8888", "kernelsvc:8888"),
        ("server_name sessions.example.org;", "server_name _;"),
        ("/etc/letsencrypt/live/sessions.example.org/", "/etc/nginx/tls/"),
        ("/var/log/nginx/kernelsvc.log", "/dev/stdout"),
    ):
        text = text.replace(page, here)
    assert (DEPLOY / "nginx.conf").read_text().partition("\n\n")[2] == text


def test_the_image_sets_settings_that_exist_and_the_volume_is_its_data_directory() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    names = dict(re.findall(r"KERNELSVC_(\w+)=(\S+)", text))
    assert {name.lower() for name in names} <= {field.name for field in msgspec.structs.fields(Settings)}
    assert f"VOLUME {names['DATA_DIR']}\n" in text
    assert [volume.partition(":")[2] for volume in COMPOSE["services"]["kernelsvc"]["volumes"]] == [names["DATA_DIR"]]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_a_service_is_built_from_a_stage_of_the_image(service: str) -> None:
    build = COMPOSE["services"][service]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Containerfile")
    assert f" AS {build['target']}\n" in (DEPLOY / "Containerfile").read_text()


def test_the_page_has_the_options_of_the_compose_file() -> None:
    service = COMPOSE["services"]["kernelsvc"]
    for option in service["security_opt"]:
        assert f"--security-opt {option}" in PAGE
    assert all(f"--cap-drop {name}" in PAGE for name in service["cap_drop"])


def test_pods_of_kubernetes_use_settings_that_exist_and_the_user_of_the_image() -> None:
    known = {row.env for row in TABLE} | {"KERNELSVC_CONFIG"}
    kinds = ["StatefulSet", "Deployment"]
    found = [
        each
        for path in (DEPLOY / "kubernetes" / "base").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
    ]
    pods = [each["spec"]["template"]["spec"] for each in found if each["kind"] in kinds]
    assert len(pods) == len(kinds)
    for pod in pods:
        assert f"--uid {pod['securityContext']['runAsUser']} " in (DEPLOY / "Containerfile").read_text()
        containers = [*pod.get("initContainers", ()), *pod["containers"]]
        assert {each["name"] for container in containers for each in container["env"]} <= known
        volumes = {each["name"] for each in pod["volumes"]} | {"data"}
        assert {each["name"] for container in containers for each in container["volumeMounts"]} <= volumes
    settings = load(file=DEPLOY / "kubernetes" / "overlay" / "kernelsvc.toml")
    assert settings.max_total_memory_bytes == int(0.8 * 8 * 2**30)
    assert settings.tokens[0].name == "alice"
