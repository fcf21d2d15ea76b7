#!/bin/bash
# A real SLURM of two nodes on this machine, to try jobs and their scripts on. Needs root.
#
#   cluster/slurm/local_cluster.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf
#   cluster/slurm/local_cluster.sh stop FOLDER
#
# Debian's packages slurm-wlm and munge are installed where they are missing; everything else is in
# FOLDER. Both nodes are this machine, by other names and ports.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
[ $# = 2 ] || usage
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"

configure() {
    local host cores
    host=$(hostname -s)
    cores=$(nproc)
    mkdir -p "$folder"/{state,node1,node2}
    [ -e "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    cat > "$SLURM_CONF" << CONF
ClusterName=longhaul
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
# No cgroups: they belong to the machine, or to the container around us.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$cores
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$cores
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
    if ! command -v slurmctld > /dev/null || ! command -v munged > /dev/null; then
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends slurm-wlm munge
    fi
    configure
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    slurmctld -c
    slurmd -N node1
    slurmd -N node2
    for attempt in {1..60}; do
        [ "$(sinfo --noheader --Node --states=idle --format=%N | wc -l)" = 2 ] && break
        if [ "$attempt" = 60 ]; then
            echo "the nodes do not come up: see $folder/*.log" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    local pid
    scancel --state=RUNNING,PENDING 2> /dev/null || true
    for pid in "$folder"/node?.pid "$folder/slurmctld.pid" "$folder/munged.pid"; do
        [ -e "$pid" ] && kill "$(cat "$pid")" 2> /dev/null || true
    done
}

case "$1" in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
