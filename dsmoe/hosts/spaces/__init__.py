"""Hosts made of namespaces on this machine: each its own network, name, and link to a switch."""
