"""Namespaces whose containers another program looks after, in books of its own."""

OWNERS = {"moby": "Docker", "plugins.moby": "Docker", "k8s.io": "Kubernetes"}
