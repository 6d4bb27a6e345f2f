"""docker-compose.yaml, as far as it can be judged without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployment.env import fill
from reducto_provider.plugins.usage_page.settings import parse_datasets
from tests.e2e.compose import Compose, UnsetVariableError, read_env

PROJECT = Path(__file__).parents[1]
COMPOSE = PROJECT / "docker-compose.yaml"
EXAMPLE = PROJECT / ".env.example"
AIRFLOW = ("init", "api-server", "scheduler", "dag-processor", "triggerer", "worker-1", "worker-2")


HEALTH = ("metadatabase", "scheduler", "triggerer", "dag_processor")


class HealthPage:
    """What Airflow's API server tells of its parts."""

    def __init__(self):
        self.parts = {}
        self.address = ""

    def answer(self, request, _):
        found = request.startswith(b"GET /api/v2/monitor/health ")
        yield b"HTTP/1.1 200 OK\r\n\r\n" if found else b"HTTP/1.1 404 Not Found\r\n\r\n"
        yield json.dumps(self.parts).encode()


@pytest.fixture
def health_page(listen):
    page = HealthPage()
    page.address = listen(page.answer).url.removeprefix("http://")
    return page


@pytest.fixture(scope="module")
def compose():
    return Compose.read(COMPOSE, read_env(fill(EXAMPLE.read_text())))


def versions(pins):
    lines = [line.partition(";")[0].strip() for line in (PROJECT / pins).read_text().splitlines()]
    return dict(line.split("==") for line in lines)


def test_it_is_valid_against_the_compose_specification():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_copies_what_is_there_and_installs_the_pinned_versions(compose):
    dockerfile = compose.services["init"]["build"]["dockerfile_inline"]
    copied = [word for line in dockerfile.splitlines() if line.startswith("COPY") for word in line.split()[2:-1]]
    assert {"pyproject.toml", "reducto_provider", "simulator", "requirements/e2e.txt"} <= set(copied)
    assert all((PROJECT / path).exists() for path in copied)
    installed, tested = versions("requirements/e2e.txt"), versions("requirements/dev.txt")
    assert f"FROM apache/airflow:slim-{installed['apache-airflow']}-" in dockerfile
    # What the deployment has of the same packages is what the suite runs on.
    assert {name: installed[name] for name in installed.keys() & tested.keys()} == {
        name: tested[name] for name in installed.keys() & tested.keys()
    }


def test_every_airflow_service_is_of_the_same_image_and_waits_for_the_init_step(compose):
    for name in AIRFLOW:
        service = compose.services[name]
        assert service["image"] == "airflow-provider-reducto:local"
        assert service["pull_policy"] == "never"
        assert service["environment"]["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
        if name != "init":
            assert service["depends_on"]["init"] == {"condition": "service_completed_successfully"}
            assert service["healthcheck"]["test"]


def test_the_image_is_built_once(compose):
    # Built for each service, it is another image each time, by its labels, and all but the last one lose the name.
    assert [name for name, service in compose.services.items() if "build" in service] == ["init"]


def test_the_database_is_reached_where_it_stays(compose):
    # While postgres makes the database, it has a server that listens on the socket alone, and that stops again.
    assert compose.healthcheck("postgres")[:3] == ["pg_isready", "--host", "127.0.0.1"]


def test_a_health_check_does_not_load_airflow(compose):
    for name in AIRFLOW[1:]:
        assert not re.search(r"\bairflow\b", " ".join(compose.healthcheck(name)))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("api-server", "metadatabase"),
        ("scheduler", "scheduler"),
        ("dag-processor", "dag_processor"),
        ("triggerer", "triggerer"),
    ],
)
def test_a_part_is_healthy_when_airflow_says_so(compose, health_page, name, part):
    _, *words = compose.healthcheck(name)
    words = [word.replace("api-server:8080", health_page.address) for word in words]
    for status in ("healthy", "unhealthy", None):
        health_page.parts = {each: {"status": status if each == part else "healthy"} for each in HEALTH}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (status == "healthy"), done.stderr


def test_what_is_waited_for_can_be_waited_for(compose):
    for service in compose.services.values():
        for other, how in service.get("depends_on", {}).items():
            needed = "healthcheck" if how["condition"] == "service_healthy" else "command"
            assert needed in compose.services[other]


def test_every_volume_and_host_is_one_of_its_own(compose):
    document = compose.document
    named = {volume.partition(":")[0] for service in compose.services.values() for volume in service.get("volumes", ())}
    assert {name for name in named if not name.startswith(".")} == set(document["volumes"])
    hosts = re.findall(r"(?:@|://)([a-z-]+):\d{4}\b", json.dumps(document))
    assert set(hosts) <= set(compose.services)


def test_no_secret_is_in_what_is_committed(compose):
    unset = [name for name, value in read_env(EXAMPLE.read_text()).items() if not value]
    assert set(unset) == {
        *("FERNET_KEY", "API_SECRET_KEY", "JWT_SECRET", "ADMIN_PASSWORD"),
        *("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"),
    }
    with pytest.raises(UnsetVariableError, match=r"make \.env"):
        Compose.read(COMPOSE, {})
    # The keys of connections are the init step's alone.
    with_keys = [name for name, service in compose.services.items() if "sim-key-all" in json.dumps(service)]
    assert with_keys == ["init"]


def test_the_connections_are_what_airflow_imports(compose):
    connections = json.loads(compose.services["init"]["environment"]["CONNECTIONS"])
    assert connections["reducto_default"]["password"] == "sim-key-all"
    assert connections["lake"]["extra"]["endpoint_url"] == "http://storage:8333"
    users = json.loads(compose.document["configs"]["storage-users"]["content"])
    [credentials] = users["identities"][0]["credentials"]
    assert credentials == {
        "accessKey": connections["lake"]["login"],
        "secretKey": connections["lake"]["password"],
    }


def test_the_usage_page_shows_the_example_dags_exports_with_their_budgets(compose):
    environment = compose.services["api-server"]["environment"]
    [dataset] = parse_datasets(environment["AIRFLOW__REDUCTO__USAGE_PAGE"])
    assert dataset.path == environment["REDUCTO_USAGE_PATH"]
    organizations = yaml.safe_load((PROJECT / "dags/reducto_organizations.yaml").read_text())["organizations"]
    assert dataset.budgets == {each["id"]: each["budget"] for each in organizations}


def test_the_environment_file_is_made_once_and_is_its_owners_alone(tmp_path):
    target = tmp_path / ".env"
    command = [sys.executable, "-m", "deployment.env", str(target)]
    first = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert first.stdout == f"wrote {target}\n"
    written = target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600
    values = read_env(written)
    assert all(values.values())
    assert values["REDUCTO_HOST"] == "http://simulator:8085"
    assert len(set(values.values())) == len(values)
    again = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert target.read_text() == written
