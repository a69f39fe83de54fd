"""The OpenAPI document, the files in deploy/ and the page of the guide say what the server does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.serving.serve_cases import INFER, PIXELS, X, ask, encoded, image_bundle, number_bundle, numbers, served

from dynamic.cli.app import app
from dynamic.serve import ServeOptions
from dynamic.serve.request_errors import STATUS
from dynamic.serve.server import SENT_S

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text("utf-8")


def resolved(document: Any, value: Any) -> Any:
    """The schema that a reference leads to."""
    if isinstance(value, dict) and "$ref" in value:
        for key in value["$ref"].removeprefix("#/").split("/"):
            document = document[key]
        return document
    return value


def test_every_address_of_the_document_answers_as_it_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(image_bundle(tmp_path_factory)) as (server, _):
        document = ask(server.port, "/openapi.json").json
        assert document["openapi"] == "3.1.0"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                png = {"Content-Type": "image/png"}
                content, headers = (encoded(PIXELS[0]), png) if method == "post" else (None, {})
                reply = ask(server.port, path, content, headers=headers)
                described = operation["responses"]["200"]
                if "application/json" in described["content"]:
                    schema = resolved(document, described["content"]["application/json"]["schema"])
                    assert set(schema.get("required", ())) <= set(reply.json) <= {*schema.get("properties", reply.json)}
                assert reply.status == 200, path
        infer = document["paths"][INFER]["post"]
        assert set(infer["responses"]) == {str(status.http) for status in STATUS.values()}
        assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream", "image/*"}
        refused = ask(server.port, INFER, b"{")
        error = resolved(document, infer["responses"]["400"]["content"]["application/json"]["schema"])
        assert list(refused.json) == error["required"]


def test_the_document_names_the_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    bearer = {"Authorization": "Bearer secret"}
    with served(number_bundle(tmp_path_factory), token="secret") as (server, _):
        document = ask(server.port, "/openapi.json", headers=bearer).json
        assert document["security"] == [{"token": []}]
        open_paths = [
            path for path, methods in document["paths"].items() if methods.get("get", {}).get("security") == []
        ]
        assert {ask(server.port, path).status for path in open_paths} == {200}
        assert len(open_paths) == 4
        assert "secret" not in json.dumps(document)


def metric_names(port: int) -> set[str]:
    """The names of all samples."""
    text = ask(port, "/metrics").body.decode()
    return {re.split(r"[ {]", line, maxsplit=1)[0] for line in text.splitlines() if not line.startswith("#")}


def test_the_dashboard_and_the_guide_name_metrics_that_exist(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        ask(server.port, INFER, numbers(X[:1], name="input"))
        # families: a counter or histogram with labels has no sample before it is first used
        text = ask(server.port, "/metrics").body.decode()
        families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) | metric_names(server.port)
    dashboard = json.loads((DEPLOY / "grafana" / "dynamic.json").read_text("utf-8"))
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bdynamic_\w+", target["expr"])
    }
    assert len(used) > 12
    assert used - families == set()
    named = set(re.findall(r"`(dynamic_\w+)`", GUIDE))
    assert named - families == set()
    plain = {re.sub(r"_(bucket|count|sum)$", "", name) for name in families if not name.endswith("_created")}
    assert plain - named == set()


def test_files_of_deploy_agree_with_each_other_and_the_command() -> None:
    options = {name for one in typer.main.get_command(app).commands["serve"].params for name in one.opts}  # type: ignore[attr-defined]
    docker = (DEPLOY / "Dockerfile").read_text("utf-8")
    command = json.loads(re.findall(r"^ENTRYPOINT (.*)$", docker, re.MULTILINE)[0])
    assert command[:3] == ["dynamic", "serve", "/shelf"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for arguments in (command, compose["services"]["server"]["command"], container["args"]):
        assert {argument for argument in arguments if argument.startswith("--")} <= options
    ports = [command[command.index(option) + 1] for option in ("--port", "--grpc-port")]
    assert re.findall(r"^EXPOSE (.*)$", docker, re.MULTILINE) == [" ".join(ports)]
    assert compose["services"]["server"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    assert [str(one["containerPort"]) for one in container["ports"]] == ports
    assert [str(one["port"]) for one in service["spec"]["ports"]] == ports
    assert {one["targetPort"] for one in service["spec"]["ports"]} == {one["name"] for one in container["ports"]}
    for one in compose["services"].values():
        for volume in one.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("${SHELF") or (DEPLOY / source).is_file(), volume
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE):
        assert {f"!{name}" for name in source.split()} <= set(ignored)


def test_kubernetes_takes_the_deployment() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")):
        validator.validate(document, "1.37", strict=True)
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "one"}, "spec": {"prots": []}}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, "1.37", strict=True)


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_files_of_deploy_give_the_server_time() -> None:
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["server"]
    needed = ServeOptions().drain_s + 2 * SENT_S  # HTTP, then gRPC
    assert seconds(server["stop_grace_period"]) > needed
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep = int(re.findall(r"sleep\((\d+)\)", " ".join(container["lifecycle"]["preStop"]["exec"]["command"]))[0])
    assert pod["terminationGracePeriodSeconds"] > sleep + needed
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["timeoutSeconds"] == 5
        assert container[probe]["failureThreshold"] >= 3


def test_prometheus_is_let_in_by_kubernetes() -> None:
    """Its annotations name no token, and the server has one."""
    deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert [one["name"] for one in container["env"]] == ["DYNAMIC_SERVE_TOKEN"]
    assert "--open-metrics" in container["args"]


def test_the_guide_lists_every_status() -> None:
    rows = set(re.findall(r"^\| (\d{3}) \| `([A-Z_]+)` \|", GUIDE, re.MULTILINE))
    assert rows == {(str(one.http), one.grpc) for one in STATUS.values() if one.http not in (200, 500)}
