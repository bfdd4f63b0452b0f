"""`deploy/k8s` as Kubernetes' own schemas have it, and as the executor, its image and its seccomp profile have it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from cellar_executor import __version__
from cellar_executor.cli import main
from cellar_executor.http.about_routes import about
from cellar_executor.service import LAST_WRITES_S
from cellar_executor.settings import ENV_PREFIX

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
BASE = DEPLOY / "k8s"
INSTALLER = BASE / "seccomp-installer.yaml"
RELEASES = ("1.30", "1.37")
"""The oldest that has all that we ask for, and the newest whose schemas we have."""
HTTP_CLOSES_S = 5
"""uvicorn's, for the last connections."""
CLIENT = {"cellar.client": "true"}

Manifest = dict[str, Any]


@cache
def read(path: Path) -> tuple[Manifest, ...]:
    return tuple(yaml.safe_load_all(path.read_text()))


MANIFESTS = {f"{m['kind']} {m['metadata']['name']}": m for path in sorted(BASE.glob("[!k]*.yaml")) for m in read(path)}
DEPLOYMENT = MANIFESTS["Deployment executor"]
REDIS = MANIFESTS["StatefulSet redis"]
DAEMON_SET = MANIFESTS["DaemonSet seccomp-installer"]
WORKLOADS = (DEPLOYMENT, REDIS, DAEMON_SET)


def pod(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(workload: Manifest) -> Manifest:
    (only,) = pod(workload)["containers"]
    return only  # type: ignore[no-any-return]


def environment(workload: Manifest) -> dict[str, Manifest]:
    return {variable["name"]: variable for variable in container(workload)["env"]}


def values(tree: object, key: str) -> Iterator[Any]:
    """Of all entries of that name, however deep."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


# --- as Kubernetes has it -------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_kubernetes_takes(name: str, release: str) -> None:
    assert kubernetes_validate.validate(MANIFESTS[name], release, strict=True) == release


def test_a_field_that_kubernetes_does_not_know_is_seen() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="hostUser"):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": {"hostUser": False}}, "1.37", True)


def test_kustomizations_name_what_is_there() -> None:
    (base,), (whole,) = read(BASE / "kustomization.yaml"), read(DEPLOY / "kustomization.yaml")
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml", INSTALLER.name}
    assert set(base["resources"]) == files
    assert whole["resources"] == ["k8s", f"k8s/{INSTALLER.name}"]
    (generated,) = whole["configMapGenerator"]
    (profile,) = pod(DAEMON_SET)["volumes"][:1]
    assert generated["name"] == profile["configMap"]["name"]
    assert generated["namespace"] == DAEMON_SET["metadata"]["namespace"]
    assert all((DEPLOY / file).is_file() for file in generated["files"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_kubectl_builds_it_with_our_apparmor_profile_too(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text("resources: [k8s]\ncomponents: [k8s/components/apparmor]\n")
    built = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True).stdout
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(built)}
    assert pod(by_kind["Deployment"])["securityContext"]["appArmorProfile"]["type"] == "Localhost"
    assert by_kind["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert by_kind["Deployment"]["metadata"]["namespace"] == by_kind["Namespace"]["metadata"]["name"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["kind"])
def test_selectors_find_their_pods(workload: Manifest) -> None:
    assert workload["spec"]["selector"]["matchLabels"] == workload["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(("name", "workload"), [("executor", DEPLOYMENT), ("redis", REDIS)])
def test_services_policies_and_budgets_find_the_same_pods(name: str, workload: Manifest) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS[f"Service {name}"]["spec"]["selector"] == labels
    assert MANIFESTS[f"NetworkPolicy {name}"]["spec"]["podSelector"]["matchLabels"] == labels
    if workload is DEPLOYMENT:
        assert MANIFESTS["PodDisruptionBudget executor"]["spec"]["selector"]["matchLabels"] == labels
        spread = pod(workload)["topologySpreadConstraints"]
        assert [by["labelSelector"]["matchLabels"] for by in spread] == [labels, labels]


# --- as Cellar has it -----------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["kind"])
def test_images_are_this_version(workload: Manifest) -> None:
    name, _, tag = container(workload)["image"].partition(":")
    assert tag == __version__
    assert (DEPLOY / f"{name.removeprefix('cellar-')}.Dockerfile").is_file()


def test_the_executor_knows_its_variables() -> None:
    command = typer.main.get_command(main)
    known = {option.envvar for option in command.commands["serve"].params}  # type: ignore[attr-defined]
    ours = {name for name in environment(DEPLOYMENT) if name.startswith(ENV_PREFIX)}
    assert ours <= known
    assert {ENV_PREFIX + name for name in ("API_KEYS", "REDIS_URL", "ADVERTISE_URL")} <= ours


def test_redis_start_knows_its_variables() -> None:
    start = (DEPLOY / "redis" / "start").read_text()
    ours = {name for name in environment(REDIS) if name.startswith("CELLAR_")}
    assert ours == set(re.findall(r"\${(CELLAR_\w+)", start))


def test_variables_are_known_before_they_are_used() -> None:
    seen: set[str] = set()
    for name, variable in environment(DEPLOYMENT).items():
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= seen, name
        seen.add(name)


def test_secrets_are_not_in_the_manifests() -> None:
    assert not any(name.startswith("Secret ") for name in MANIFESTS)
    for workload, name in (
        (DEPLOYMENT, "CELLAR_EXECUTOR_API_KEYS"),
        (DEPLOYMENT, "CELLAR_REDIS_PASSWORD"),
        (REDIS, "CELLAR_REDIS_PASSWORD"),
    ):
        assert environment(workload)[name]["valueFrom"]["secretKeyRef"]["name"] == "cellar"


def test_probes_ask_routes_that_are_there() -> None:
    probes = {name: container(DEPLOYMENT)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {probe["path"] for probe in probes.values()} <= {route.path for route in about.routes}  # type: ignore[attr-defined]
    assert probes["readiness"]["path"] == "/readyz"
    assert probes["liveness"]["path"] == "/healthz", "without Redis /readyz fails, and a restart would end what runs"


def test_ports_agree() -> None:
    dockerfile = (DEPLOY / "executor.Dockerfile").read_text()
    (listened,) = re.findall(r"CELLAR_EXECUTOR_PORT=(\d+)", dockerfile)
    assert container(DEPLOYMENT)["ports"] == [{"name": "http", "containerPort": int(listened)}]
    assert environment(DEPLOYMENT)["CELLAR_EXECUTOR_ADVERTISE_URL"]["value"].endswith(f":{listened}")
    assert DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == listened
    for name, workload in (("executor", DEPLOYMENT), ("redis", REDIS)):
        (served,), (offered,) = MANIFESTS[f"Service {name}"]["spec"]["ports"], container(workload)["ports"]
        assert (served["port"], served["targetPort"]) == (offered["containerPort"], offered["name"])
    (redis,) = MANIFESTS["Service redis"]["spec"]["ports"]
    assert f"@redis:{redis['port']}/" in environment(DEPLOYMENT)["CELLAR_EXECUTOR_REDIS_URL"]["value"]


def test_the_last_cell_and_the_last_writes_end_before_the_pod_does() -> None:
    before_s = container(DEPLOYMENT)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(environment(DEPLOYMENT)["CELLAR_EXECUTOR_DRAIN_TIMEOUT_S"]["value"])
    needed_s = before_s + drain_s + LAST_WRITES_S + HTTP_CLOSES_S
    assert pod(DEPLOYMENT)["terminationGracePeriodSeconds"] > needed_s


def test_an_update_takes_no_server_away_and_the_autoscaler_alone_counts_them() -> None:
    spec = DEPLOYMENT["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert "replicas" not in spec
    scaling = MANIFESTS["HorizontalPodAutoscaler executor"]["spec"]
    assert scaling["scaleTargetRef"] == {
        "apiVersion": DEPLOYMENT["apiVersion"],
        "kind": DEPLOYMENT["kind"],
        "name": DEPLOYMENT["metadata"]["name"],
    }
    assert scaling["minReplicas"] >= 2
    assert REDIS["spec"]["replicas"] == 1


# --- what confines it -----------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["kind"])
def test_no_pod_has_a_privilege_or_a_token(workload: Manifest) -> None:
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(workload)["automountServiceAccountToken"] is False
    assert pod(workload)["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(workload).keys()


@pytest.mark.parametrize(("workload", "dockerfile"), [(DEPLOYMENT, "executor.Dockerfile"), (REDIS, "redis.Dockerfile")])
def test_pods_run_as_the_ordinary_user_of_their_image(workload: Manifest, dockerfile: str) -> None:
    context = pod(workload)["securityContext"]
    assert context["runAsNonRoot"] is True
    users = re.findall(r"^USER (\S+)", (DEPLOY / dockerfile).read_text(), re.MULTILINE)
    assert users[0] == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_seccomp_profile_is_where_the_installer_puts_it() -> None:
    profile = pod(DEPLOYMENT)["securityContext"]["seccompProfile"]
    (node,) = (volume["hostPath"]["path"] for volume in pod(DAEMON_SET)["volumes"] if "hostPath" in volume)
    (script,) = container(DAEMON_SET)["command"][-1:]
    (target,) = re.findall(r"mv \S+ /node/(\S+)", script)
    assert profile["type"] == "Localhost"
    assert f"/var/lib/kubelet/seccomp/{profile['localhostProfile']}" == f"{node}/{target}"
    assert (DEPLOY / target).is_file()


def test_apparmor_is_ours_or_none() -> None:
    assert pod(DEPLOYMENT)["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}, "the default denies mounts"
    (component,) = read(BASE / "components" / "apparmor" / "kustomization.yaml")
    (change,) = yaml.safe_load(component["patches"][0]["patch"])
    (ours,) = re.findall(r"^profile (\S+)", (DEPLOY / "apparmor-executor").read_text(), re.MULTILINE)
    assert change["value"] == {"type": "Localhost", "localhostProfile": ours}


def test_only_clients_reach_executors_and_only_executors_reach_redis() -> None:
    executors = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    to_executor = MANIFESTS["NetworkPolicy executor"]["spec"]
    to_redis = MANIFESTS["NetworkPolicy redis"]["spec"]
    assert [list(values(rule["from"], "matchLabels")) for rule in to_executor["ingress"]] == [
        [CLIENT, CLIENT, executors]
    ]
    assert [list(values(rule["from"], "matchLabels")) for rule in to_redis["ingress"]] == [[executors]]
    assert to_redis["egress"] == []
    assert not list(values(to_executor, "ipBlock"))
    assert all(rule["to"] and rule["ports"] for rule in to_executor["egress"])
    for policy in (to_executor, to_redis):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
