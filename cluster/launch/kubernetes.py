"""A RayJob for KubeRay: a Ray cluster that lives as long as the run, submitted with kubectl.

KubeRay starts the run anew where it failed or was preempted, up to ``retries`` times, in a cluster
of its own each time. A pod that is to go gets as long as a checkpoint needs (``grace``). Every pod
meets the pod security standard "restricted"; what stands around them is in ``cluster/kubernetes``.
"""

import importlib.metadata
import re
from typing import Any

import yaml

from cluster.launch.job import Job, call
from cluster.spec import seconds
from pipeline import storage
from pipeline.errors import LonghaulError

FILE = "job.yaml"
_QUEUE = "kueue.x-k8s.io/queue-name"
_AFTER_DRAIN_SECONDS = 20  # to end the processes, once the node is drained


def render(job: Job) -> str:
    """The RayJob. Raises LonghaulError where KubeRay or Kueue would refuse it, or it cannot run."""
    _check(job)
    spec, kubernetes = job.spec, job.spec.kubernetes
    elastic = not isinstance(spec.nodes, int)
    workers = {"cpu": spec.cpus_per_node, "memory": spec.memory}
    workers[kubernetes.gpu_resource] = spec.gpus_per_node or None
    head = {"cpu": kubernetes.head_cpus, "memory": kubernetes.head_memory}
    document: dict[str, Any] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": job.recipe.name,
            "namespace": kubernetes.namespace,
            "labels": {"app.kubernetes.io/name": "longhaul"}
            | ({_QUEUE: spec.queue} if spec.queue else {}),
            "annotations": {"longhaul/run": job.recipe.run_url},
        },
        "spec": {
            "entrypoint": job.command_line,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": seconds(kubernetes.keep_after),
            "backoffLimit": spec.retries,
            "submitterPodTemplate": _submitter(job),
            "rayClusterSpec": {
                "rayVersion": importlib.metadata.version("ray"),
                "enableInTreeAutoscaling": elastic,
                # KubeRay puts the autoscaler's container into the head's pod.
                "autoscalerOptions": {"securityContext": _container_security()},
                "headGroupSpec": {
                    "rayStartParams": _start(job, cpus=0),
                    "template": _ray_pod(job, "ray-head", head, asks_kubernetes=elastic),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": spec.least_nodes,
                        "minReplicas": spec.least_nodes,
                        "maxReplicas": spec.most_nodes,
                        "rayStartParams": _start(job, cpus=spec.cpus_per_node),
                        "template": _worker_pod(job, workers),
                    }
                ],
            },
        },
    }
    if spec.time_limit is not None:
        document["spec"]["activeDeadlineSeconds"] = seconds(spec.time_limit)
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def _check(job: Job) -> None:
    spec = job.spec
    if spec.image is None:
        raise LonghaulError("Kubernetes runs an image: set image in the cluster's specification")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job.recipe.name):
        raise LonghaulError(
            f"a RayJob cannot be called {job.recipe.name!r}: lower-case letters, digits and "
            "hyphens, a letter first, at most 47"
        )
    for name, secret in spec.secrets.items():
        if secret.kubernetes is None:
            raise LonghaulError(f"secrets.{name}: Kubernetes reads secrets from a Secret, name/key")
    if spec.queue is not None and not isinstance(spec.nodes, int):
        raise LonghaulError(
            "a Kueue queue admits a fixed number of nodes: nodes is one number, or queue goes"
        )
    places = {"runs": job.recipe.runs, "data.path": job.recipe.data.path}
    if job.recipe.train.init_from is not None:
        places["train.init_from"] = job.recipe.train.init_from
    for key, url in places.items():
        mounted = any(_below(url, path) for path in spec.kubernetes.volumes)
        if storage.is_local(url) and not mounted:
            raise LonghaulError(
                f"{key} {url} is in no volume that all pods see: take a bucket, or mount a claim "
                "there with kubernetes.volumes"
            )


def _below(url: str, folder: str) -> bool:
    return storage.absolute(url).startswith(folder.rstrip("/") + "/")


def _pod(job: Job, asks_kubernetes: bool = False) -> dict[str, Any]:
    """What all pods of a run have in common."""
    kubernetes = job.spec.kubernetes
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": asks_kubernetes,
    }
    if kubernetes.service_account is not None:
        pod["serviceAccountName"] = kubernetes.service_account
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": held} for held in kubernetes.image_pull_secrets]
    return pod


def _container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _submitter(job: Job) -> dict[str, Any]:
    """The pod that hands the command to Ray's head and shows its log.

    KubeRay's own one meets no security standard and cannot pull an image that needs a secret.
    """
    container = {
        "name": "ray-job-submitter",  # KubeRay looks for this name
        "image": job.spec.image,
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": _container_security(),
    }
    return {"spec": _pod(job) | {"restartPolicy": "Never", "containers": [container]}}


def _start(job: Job, cpus: int) -> dict[str, str]:
    """How Ray starts in a pod. Its own store leaves room in the shared memory for the workers'."""
    store = job.spec.kubernetes.shared_memory // 2
    return {"num-cpus": str(cpus), "object-store-memory": str(store)}


def _ray_pod(
    job: Job, name: str, resources: dict[str, Any], asks_kubernetes: bool = False
) -> dict[str, Any]:
    spec, kubernetes = job.spec, job.spec.kubernetes
    grace = seconds(spec.grace)
    wanted = {kind: int(amount) for kind, amount in resources.items() if amount is not None}
    environment = job.environment() | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(grace)}
    env: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in sorted(environment.items())]
    for variable, secret in sorted(spec.secrets.items()):
        held, key = str(secret.kubernetes).split("/")
        reference = {"secretKeyRef": {"name": held, "key": key}}
        env.append({"name": variable, "valueFrom": reference})
    volumes: list[dict[str, Any]] = [
        {
            "name": "shm",
            "emptyDir": {"medium": "Memory", "sizeLimit": int(kubernetes.shared_memory)},
        }
    ]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, (path, claim) in enumerate(sorted(kubernetes.volumes.items())):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    pod = _pod(job, asks_kubernetes) | {
        "containers": [
            {
                "name": name,
                "image": spec.image,
                "env": env,
                "resources": {"requests": wanted, "limits": dict(wanted)},
                "volumeMounts": mounts,
                "securityContext": _container_security(),
            }
        ],
        "volumes": volumes,
        "terminationGracePeriodSeconds": grace + _AFTER_DRAIN_SECONDS,
    }
    return {"spec": pod}


def _worker_pod(job: Job, resources: dict[str, Any]) -> dict[str, Any]:
    """On the nodes that the specification selects, which a head would take from a worker."""
    kubernetes = job.spec.kubernetes
    template = _ray_pod(job, "ray-worker", resources)
    if kubernetes.node_selector:
        template["spec"]["nodeSelector"] = dict(kubernetes.node_selector)
    if kubernetes.tolerations:
        template["spec"]["tolerations"] = [
            t.model_dump(exclude_none=True) for t in kubernetes.tolerations
        ]
    return template


def alive(job: Job) -> bool:
    """Whether KubeRay works on the run's RayJob, or will."""
    stands = _status(job)
    return stands is not None and stands not in _ENDED


def submit(job: Job, rendered: str) -> str:
    """Hand the RayJob to kubectl, in place of an ended one of the same run."""
    name = job.recipe.name
    if _status(job) is not None:
        call([*_kubectl(job), "delete", "rayjob", name, "--wait"])
    call([*_kubectl(job), "create", "--filename=-"], rendered)
    return name


def last_words(job: Job, number: str) -> str:
    """Why KubeRay gave the job up."""
    get = ["get", "rayjob", number, "--ignore-not-found", "--output=jsonpath={.status.message}"]
    return call([*_kubectl(job), *get])


_ENDED = ("Complete", "Failed")


def _status(job: Job) -> str | None:
    """What KubeRay says of the RayJob, "" where it did not look at it yet; None: there is none."""
    path = "jsonpath={.metadata.name} {.status.jobDeploymentStatus}"
    get = ["get", "rayjob", job.recipe.name, "--ignore-not-found", f"--output={path}"]
    said = call([*_kubectl(job), *get])
    return said.partition(" ")[2] if said else None


def _kubectl(job: Job) -> list[str]:
    return ["kubectl", f"--namespace={job.spec.kubernetes.namespace}"]
