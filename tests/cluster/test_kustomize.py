"""What stands around the runs in Kubernetes: rendered by kubectl, and held against the RayJobs."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cluster.launch import LAUNCHERS
from cluster.spec import ClusterSpec, load_spec
from tests.cluster.test_launch import CLUSTERS, job
from tests.train.runs import ROOT

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

FOLDER = ROOT / "cluster" / "kubernetes"
OVERLAYS = [path.parent for path in sorted(FOLDER.rglob("kustomization.yaml"))]
PLACES = {  # the specification and what it is launched into
    "kubernetes": FOLDER / "base",
    "kubernetes-kueue": FOLDER / "overlays" / "kueue",
    "kubernetes-trial": FOLDER / "overlays" / "trial",
}
CLUSTER_WIDE = {"Namespace", "ResourceFlavor", "ClusterQueue"}

Document = dict[str, Any]


@functools.cache
def rendered(folder: Any) -> list[Document]:
    """What ``kubectl apply -k`` would hand over."""
    command = ["kubectl", "kustomize", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return list(yaml.safe_load_all(said.stdout))


def find(documents: list[Document], kind: str, name: str, namespace: str | None = None) -> Document:
    for document in documents:
        metadata = document["metadata"]
        if (document["kind"], metadata["name"]) == (kind, name):
            assert metadata.get("namespace") == namespace
            return document
    raise AssertionError(f"no {kind} {name}")


def spec_named(name: str) -> ClusterSpec:
    return load_spec(str(CLUSTERS / f"{name}.yaml"))


def rayjob(spec: ClusterSpec) -> Document:
    document: Document = yaml.safe_load(LAUNCHERS["kubernetes"].render(job(spec)))
    return document


def pods(document: Document) -> dict[str, Document]:
    """The pods that KubeRay makes of a RayJob, with the containers it adds: by their role."""
    spec = document["spec"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    if cluster["enableInTreeAutoscaling"]:
        head["containers"].append({"name": "autoscaler"} | cluster.get("autoscalerOptions", {}))
    security = worker["containers"][0].get("securityContext")
    worker["initContainers"] = [{"name": "wait-gcs-ready", "securityContext": security}]
    return {"head": head, "worker": worker, "submitter": spec["submitterPodTemplate"]["spec"]}


def breaches(pod: Document) -> Iterator[str]:
    """What the pod security standard "restricted" has against a pod (Kubernetes 1.32)."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", []):
        allowed = {"emptyDir", "persistentVolumeClaim", "secret", "configMap", "projected"}
        if not volume.keys() & allowed:
            yield f"volume {volume['name']}"
    around = pod.get("securityContext", {})
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext") or {}
        name, both = container["name"], around | own
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"


@dataclass(frozen=True)
class Pod:
    """Somebody on the network; without a namespace: outside the cluster."""

    namespace: str | None
    labels: tuple[tuple[str, str], ...] = ()

    def matches(self, selector: Document) -> bool:
        assert not selector.keys() - {"matchLabels"}, "this test reads matchLabels only"
        return selector.get("matchLabels", {}).items() <= dict(self.labels).items()

    def is_peer(self, peer: Document, namespace: str) -> bool:
        assert not peer.keys() - {"podSelector", "namespaceSelector"}
        if self.namespace is None or not self.matches(peer.get("podSelector", {})):
            return False
        if "namespaceSelector" not in peer:
            return self.namespace == namespace
        home = Pod(None, (("kubernetes.io/metadata.name", self.namespace),))
        return home.matches(peer["namespaceSelector"])


HEAD, WORKER = (Pod("training", (("ray.io/node-type", kind),)) for kind in ("head", "worker"))
SUBMITTER = Pod("training", (("ray.io/originated-from-crd", "RayJob"),))
OPERATOR = Pod("kuberay-operator", (("app.kubernetes.io/name", "kuberay-operator"),))
STORE = Pod("storage", (("app.kubernetes.io/name", "minio"),))
NEIGHBOUR, OUTSIDE = Pod("default"), Pod(None)


def reaches(documents: list[Document], source: Pod, target: Pod, port: int) -> bool:
    """Whether the policies let ``source`` open a TCP connection to ``target``."""

    def open_for(pod: Pod, other: Pod, direction: str, side: str) -> bool:
        policies = [
            document["spec"]
            for document in documents
            if document["kind"] == "NetworkPolicy"
            and document["metadata"]["namespace"] == pod.namespace
            and pod.matches(document["spec"]["podSelector"])
            and direction.capitalize() in document["spec"]["policyTypes"]
        ]
        rules = [rule for policy in policies for rule in policy.get(direction, [])]
        wanted = {"protocol": "TCP", "port": port}
        return not policies or any(
            (
                side not in rule
                or any(other.is_peer(peer, str(pod.namespace)) for peer in rule[side])
            )
            and ("ports" not in rule or wanted in rule["ports"])
            for rule in rules
        )

    return open_for(source, target, "egress", "to") and open_for(target, source, "ingress", "from")


def amount(quantity: str | int) -> float:
    units = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
    unit = str(quantity).lstrip("0123456789.")
    return float(str(quantity).removesuffix(unit)) * units[unit]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_every_folder_renders_to_objects_that_fit_together(folder: Any) -> None:
    documents = rendered(folder)
    names = [(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)
    namespaces = {name for kind, _, name in names if kind == "Namespace"}
    assert "training" in namespaces
    for kind, namespace, name in names:
        assert kind != "Secret", "secrets are made with kubectl, and never lie in a repository"
        assert namespace is None if kind in CLUSTER_WIDE else namespace in namespaces, name
    for name in namespaces:
        labels = find(documents, "Namespace", name)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    account = find(documents, "ServiceAccount", "longhaul", "training")
    assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", sorted(PLACES))
def test_the_names_of_a_specification_are_there(name: str) -> None:
    spec, documents = spec_named(name), rendered(PLACES[name])
    kubernetes = spec.kubernetes
    find(documents, "Namespace", kubernetes.namespace)
    assert kubernetes.service_account is not None
    find(documents, "ServiceAccount", kubernetes.service_account, kubernetes.namespace)
    if spec.queue is not None:
        queue = find(documents, "LocalQueue", spec.queue, kubernetes.namespace)
        find(documents, "ClusterQueue", queue["spec"]["clusterQueue"])
    told = "".join(
        (folder / "kustomization.yaml").read_text() for folder in {PLACES[name], FOLDER / "base"}
    )
    for secret in spec.secrets.values():
        held, key = str(secret.kubernetes).split("/")
        assert f"kubectl create secret generic {held} " in told
        assert key in told


def test_every_specification_for_kubernetes_has_its_place() -> None:
    assert {path.stem for path in CLUSTERS.glob("kubernetes*.yaml")} == PLACES.keys()
    assert set(PLACES.values()) == set(OVERLAYS)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_the_runs_reach_what_they_need_and_are_reached_by_nobody_else(folder: Any) -> None:
    documents = rendered(folder)
    gcs, dashboard, client, any_port = 6379, 8265, 10001, 31337
    for source, target, port in [
        (WORKER, HEAD, gcs),
        (HEAD, WORKER, any_port),
        (WORKER, WORKER, any_port),
        (SUBMITTER, HEAD, dashboard),
        (OPERATOR, HEAD, dashboard),
        (WORKER, OUTSIDE, 443),
        (WORKER, OUTSIDE, 53),
        (HEAD, OUTSIDE, 6443),
    ]:
        assert reaches(documents, source, target, port), (source, target, port)
    for source, target, port in [
        (NEIGHBOUR, HEAD, dashboard),
        (NEIGHBOUR, HEAD, client),
        (NEIGHBOUR, WORKER, any_port),
        (OUTSIDE, HEAD, dashboard),
        (OPERATOR, HEAD, client),
        (OPERATOR, WORKER, any_port),
        (Pod(NEIGHBOUR.namespace, OPERATOR.labels), HEAD, dashboard),
        (Pod(OPERATOR.namespace), HEAD, dashboard),
        (WORKER, OUTSIDE, 80),
        (WORKER, OUTSIDE, 6443),
        (WORKER, NEIGHBOUR, 5432),
    ]:
        assert not reaches(documents, source, target, port), (source, target, port)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_the_store_of_a_specification_is_reached(name: str) -> None:
    endpoint = spec_named(name).env.get("AWS_ENDPOINT_URL")
    documents = rendered(PLACES[name])
    if endpoint is None:
        assert reaches(documents, WORKER, OUTSIDE, 443)
        return
    address = urlsplit(endpoint)
    assert address.hostname == f"minio.{STORE.namespace}"
    assert address.port is not None
    assert reaches(documents, WORKER, STORE, address.port)
    assert not reaches(documents, WORKER, STORE, address.port + 1)


def test_the_store_of_a_trial_serves_the_runs_only() -> None:
    documents = rendered(FOLDER / "overlays" / "trial")
    pod = find(documents, "Deployment", "minio", "storage")["spec"]["template"]
    assert list(breaches(pod["spec"])) == []
    assert pod["metadata"]["labels"].items() <= dict(STORE.labels).items()
    service = find(documents, "Service", "minio", "storage")["spec"]
    assert STORE.matches({"matchLabels": service["selector"]})
    assert [port["port"] for port in service["ports"]] == [9000]
    assert not reaches(documents, NEIGHBOUR, STORE, 9000)
    assert not reaches(documents, STORE, OUTSIDE, 443)
    wanted = {secret.kubernetes for secret in spec_named("kubernetes-trial").secrets.values()}
    login = [entry["valueFrom"]["secretKeyRef"] for entry in pod["spec"]["containers"][0]["env"]]
    assert {f"{held['name']}/{held['key']}" for held in login} == wanted


@pytest.mark.parametrize("name", sorted(PLACES))
def test_all_pods_of_a_run_are_restricted(name: str) -> None:
    for role, pod in pods(rayjob(spec_named(name))).items():
        assert list(breaches(pod)) == [], role
        del pod["securityContext"], pod["containers"][0]["securityContext"]
        assert len(list(breaches(pod))) >= 4, "the check finds nothing"


def test_only_an_autoscaler_is_somebody_to_kubernetes() -> None:
    def tokens(spec: ClusterSpec) -> dict[str, bool]:
        found = pods(rayjob(spec)).items()
        return {role: pod["automountServiceAccountToken"] for role, pod in found}

    nobody = {"head": False, "worker": False, "submitter": False}
    assert tokens(spec_named("kubernetes-kueue")) == nobody
    assert tokens(spec_named("kubernetes")) == nobody | {"head": True}


def test_all_pods_of_a_run_pull_the_image_alike() -> None:
    spec = spec_named("kubernetes")
    part = spec.kubernetes.model_copy(update={"image_pull_secrets": ["registry"]})
    for role, pod in pods(rayjob(spec.model_copy(update={"kubernetes": part}))).items():
        assert pod["imagePullSecrets"] == [{"name": "registry"}], role
        assert pod["containers"][0]["image"] == spec.image, role
        assert pod["serviceAccountName"] == "longhaul", role


def test_the_queue_admits_the_run_of_its_specification() -> None:
    spec = spec_named("kubernetes-kueue")
    (group,) = find(rendered(PLACES["kubernetes-kueue"]), "ClusterQueue", "training")["spec"][
        "resourceGroups"
    ]
    (flavor,) = group["flavors"]
    quota = {held["name"]: amount(held["nominalQuota"]) for held in flavor["resources"]}
    assert quota.keys() == set(group["coveredResources"])
    asked = dict.fromkeys(quota, 0.0)
    for role, pod in pods(rayjob(spec)).items():
        for kind, quantity in pod["containers"][0]["resources"]["requests"].items():
            asked[kind] += amount(quantity) * (spec.most_nodes if role == "worker" else 1)
    assert all(asked[kind] <= quota[kind] for kind in quota), (asked, quota)
    assert asked["nvidia.com/gpu"] == quota["nvidia.com/gpu"] == 32
