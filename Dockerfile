# The image of a node, head or worker: Ray's own with our dependencies. It runs as user `ray`.
# The code is not in it: a job brings its working directory.
#
#   docker build -t ranet .
#   then, in ray_cluster.yaml: docker.image, and no setup_commands
FROM rayproject/ray:2.60.0-py311-gpu
WORKDIR /home/ray/ranet
COPY --chown=ray:users pyproject.toml constraints.txt ./
COPY --chown=ray:users cluster/packages.sh cluster/node.sh cluster/
RUN cluster/node.sh && sudo rm -rf /var/lib/apt/lists/*
