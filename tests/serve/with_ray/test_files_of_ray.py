"""Files for Ray Serve and KubeRay: they read, and build the application that they describe."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.serving.ray_cases import QUIET, small_bundle

import dynamic
from dynamic.serve.ray.builder import build
from dynamic.serve.ray.settings import ReplicaSettings

schema = pytest.importorskip("ray.serve.schema", reason='needs Ray Serve: pip install "dynamic-inference[ray]"')
pytestmark = QUIET

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text("utf-8"))
CONFIG = yaml.safe_load(MANIFEST["spec"]["serveConfigV2"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return small_bundle(tmp_path_factory.mktemp("files") / "shelf")


def settings_of(application: Any) -> list[ReplicaSettings]:
    """Those of the head, and of the tail where there is one."""
    bound = application._bound_deployment
    settings, *tails = bound.init_args
    return [settings, *(tail._bound_deployment.init_args[0] for tail in tails)]


def test_the_file_for_kuberay_passes_the_schema_of_ray_serve() -> None:
    deployed = schema.ServeDeploySchema(**CONFIG)
    (application,) = deployed.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    module, _, function = application.autoscaling_policy["policy_function"].partition(":")
    assert getattr(__import__(module, fromlist=[function]), function).__name__ == "follow_head"


def test_the_file_for_kuberay_builds_what_it_says(bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMIC_SERVE_TOKEN", "secret")
    args = CONFIG["applications"][0]["args"] | {"bundle": str(bundle.folder)}
    head, tail = settings_of(build(args))
    assert (head.split.cut, head.is_head, tail.is_head) == (1, True, False)
    assert head.options == tail.options
    assert (head.options.token, head.options.log_json, head.threads) == ("secret", True, 2)


def test_pods_of_kuberay_pass_the_schema_of_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    cluster = MANIFEST["spec"]["rayClusterConfig"]
    for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": one["template"]["spec"]}
        validator.validate(pod, "1.37", strict=True)


def test_fields_of_kuberay_agree_with_each_other() -> None:
    """No package has the schema of RayService, so these are looked at one by one."""
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayService")
    cluster = MANIFEST["spec"]["rayClusterConfig"]
    docker = (ROOT / "deploy" / "ray.Dockerfile").read_text("utf-8")
    assert f"rayproject/ray:{cluster['rayVersion']}-" in docker
    assert "==" + cluster["rayVersion"] in docker
    (group,) = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]
    for one in (head, group):
        pod = one["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "dynamic-ray:latest"
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert container["volumeMounts"][0]["mountPath"] == CONFIG["applications"][0]["args"]["bundle"]
        assert [entry["name"] for entry in container["env"]] == ["DYNAMIC_SERVE_TOKEN"]
    assert head["rayStartParams"]["num-cpus"] == "0", "replicas run on workers"
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports["serve"] == CONFIG["http_options"]["port"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    args = CONFIG["applications"][0]["args"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    least = (args["replicas"][0] + args["tail_replicas"][0]) * args["threads"]
    most = (args["replicas"][1] + args["tail_replicas"][1]) * args["threads"]
    assert least <= cpus * group["minReplicas"]
    assert most <= cpus * group["maxReplicas"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "bundle=None: give the path"),
        ({"budget": 5}, "budget=5: give an object"),
        ({"options": {"port": "x"}}, "port"),
        ({"options": {"prot": 1}}, "args do not read: .*prot"),
        ({"options": {"token_variable": "NO_SUCH_VARIABLE"}}, "'NO_SUCH_VARIABLE' is not set"),
        ({"threds": 2}, "args do not read: .*threds"),
        ({"cut": 7}, "cut=7 must be 'auto', None, or a stage from 1 to 1"),
    ],
)
def test_what_does_not_read_is_named(bundle: dynamic.Bundle, args: dict[str, Any], message: str) -> None:
    given = args and {"bundle": str(bundle.folder)} | args
    with pytest.raises(dynamic.errors.SettingError, match=message):
        build(given)
