"""A SLURM job: a batch script that starts Ray on its nodes and the run on the first of them.

Some time before the limit SLURM signals the script, which has the run save and then puts the job
back into the queue; so does SLURM itself when it loses a node or preempts the job. Ray's ports
follow from the job, so that jobs can share nodes.
"""

import math
import shlex

from cluster.launch.job import Job, call, check_secrets_are_files
from cluster.spec import ClusterSpec, seconds
from pipeline import storage
from pipeline.errors import LonghaulError

FILE = "job.sbatch"
_WHERE = ": launch where SLURM's users log in"

_SCRIPT = """\
#!/bin/bash
{options}

# Written by `longhaul launch slurm`; recipe and cluster lie beside it.
set -euo pipefail
{environment}
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
on() {{ srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${{@:2}}"; }}
port=$((20000 + SLURM_JOB_ID % 400 * 100))
ip=$(on "${{nodes[0]}}" hostname --ip-address | awk '{{print $1}}')
export RAY_ADDRESS="$ip:$port" RAY_USAGE_STATS_ENABLED=0
# Nobody else may talk to this job's Ray, on shared nodes or from outside.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n')
resources=(--num-cpus={cpus} --num-gpus={gpus} --block)
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

on "${{nodes[0]}}" env -u RAY_ADDRESS ray start --head --port="$port" \\
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false "${{resources[@]}}" &
for attempt in {{1..60}}; do
    said=$(ray health-check --address "$RAY_ADDRESS" 2>&1) && break
    if [ "$attempt" = 60 ]; then
        echo "longhaul: Ray does not start on ${{nodes[0]}}, port $port: $said" >&2
        exit 1
    fi
    sleep 1
done
for node in "${{nodes[@]:1}}"; do
    on "$node" env -u RAY_ADDRESS ray start --address="$RAY_ADDRESS" "${{resources[@]}}" &
done

{command} &
run=$!
warned=
trap 'warned=1; kill -TERM "$run" 2>/dev/null || true' USR2 TERM
code=0
while kill -0 "$run" 2>/dev/null; do
    code=0
    wait "$run" || code=$?
done
if [ "$code" = 75 ] && [ -n "$warned" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def render(job: Job) -> str:
    """The batch script. Raises LonghaulError where SLURM cannot hold the job."""
    spec = job.spec
    if not isinstance(spec.nodes, int):
        raise LonghaulError("a SLURM job has as many nodes as it was given: nodes is one number")
    check_secrets_are_files(job, "SLURM")
    if not storage.is_local(job.recipe.run_url):
        log = []  # SLURM writes its log into folders only
    else:
        log = [f"--output={storage.join(job.folder, 'slurm-%j.log')}"]
    exports = [f"export {k}={shlex.quote(v)}" for k, v in sorted(job.environment().items())]
    return _SCRIPT.format(
        options="\n".join(
            f"#SBATCH {option}" for option in [*_options(job.recipe.name, spec), *log]
        ),
        environment="\n".join([*spec.slurm.setup, *exports]),
        cpus=spec.cpus_per_node,
        gpus=spec.gpus_per_node,
        command=job.command_line,
        retries=spec.retries,
    )


def _options(name: str, spec: ClusterSpec) -> list[str]:
    slurm = spec.slurm
    found = [f"--job-name={name}", f"--nodes={spec.nodes}", "--ntasks-per-node=1"]
    found += [f"--cpus-per-task={spec.cpus_per_node}", "--requeue", "--open-mode=append"]
    found += [] if slurm.shared_nodes else ["--exclusive"]
    for option, value in {
        "gpus-per-node": spec.gpus_per_node or None,
        "mem": f"{spec.memory >> 20}M" if spec.memory else None,
        "partition": spec.queue,
        "account": slurm.account,
        "constraint": slurm.constraint,
    }.items():
        found += [f"--{option}={value}"] if value is not None else []
    if spec.time_limit is not None:
        limit, warning = seconds(spec.time_limit), seconds(slurm.warn_before)
        if warning >= limit:
            raise LonghaulError(
                f"slurm.warn_before {slurm.warn_before} is not before time_limit {spec.time_limit}"
            )
        found += [f"--time={math.ceil(limit / 60)}", f"--signal=B:USR2@{warning}"]
    return found


def alive(job: Job) -> bool:
    """Whether SLURM holds a job of that name for this user, running or waiting."""
    return bool(call(["squeue", "--me", "--noheader", "--name", job.recipe.name], where=_WHERE))


def submit(job: Job, rendered: str) -> str:
    """Hand the script to sbatch."""
    return call(["sbatch", "--parsable"], rendered, _WHERE).split(";")[0]


def last_words(job: Job, number: str) -> str:
    """The end of the job's log, where it is in the run's folder."""
    log = storage.join(job.folder, f"slurm-{number}.log")
    return storage.read_bytes(log).decode(errors="replace") if storage.exists(log) else ""
