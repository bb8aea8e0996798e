"""Command line of the local cluster: `python -m cluster.local`."""

from cluster.local.cluster import main

main()
