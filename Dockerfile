# Image of all nodes: the Ray image with the requirements of this project, installed by the scripts of
# `make setup`. It runs as user `ray`. The code is not part of the image: each job uploads its code.
#
#   docker build --platform linux/amd64 --tag REGISTRY/ranet:ray2.60.0 . && docker push REGISTRY/ranet:ray2.60.0
FROM rayproject/ray:2.60.0-py311-gpu
WORKDIR /home/ray/ranet

USER 0
# A builder other than BuildKit creates the folder for root.
RUN chown 1000:100 .
COPY cluster/provisioning/packages.sh cluster/provisioning/
RUN cluster/provisioning/packages.sh && rm -rf /var/lib/apt/lists/*

USER 1000
ENV PIP_NO_CACHE_DIR=1
COPY --chown=1000:100 cluster/provisioning/requirements.sh cluster/provisioning/
COPY --chown=1000:100 pyproject.toml constraints.txt ./
RUN cluster/provisioning/requirements.sh python '.[train]' && rm -rf build ./*.egg-info

# Runs outside of jobs, on each worker (ray_cluster.yaml).
COPY --chown=1000:100 cluster/provisioning/spot_notice.py cluster/provisioning/
