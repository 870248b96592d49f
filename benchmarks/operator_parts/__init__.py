"""Parts of operator_cluster.py."""
