#!/usr/bin/env bash
# Start Prometheus on 127.0.0.1:9090 on the head node of a Ray cluster; its data are in outputs/prometheus.
# NODES is the path of Ray's list of nodes, needed if Ray's temporary folder is not /tmp/ray.
set -euo pipefail
cd "$(dirname "$0")/../.."
cluster/provisioning/packages.sh prometheus
mkdir -p outputs/prometheus
ln -sfn "${NODES:-/tmp/ray/prom_metrics_service_discovery.json}" outputs/prometheus/nodes.json
exec prometheus --config.file=cluster/monitoring/prometheus.yml \
    --storage.tsdb.path=outputs/prometheus/data --web.listen-address=127.0.0.1:9090
