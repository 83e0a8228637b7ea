"""Containers as the OCI runtime specification has them: bundle → plan → steps → process. Begin with life.py."""
